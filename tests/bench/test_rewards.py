"""The comparison of rewards from one start, on a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import reward_runs, rewards
from bench.reward_runs import RewardRuns
from proactor.config_file import load_config
from proactor.evaluation.store import load_evaluations
from proactor.rewards import load_reward
from proactor.scoring.bootstrap import KEYS
from proactor.scoring.metrics import aggregate
from proactor.training.runs import Run
from tests.proactor.runs import OPTIONS as DIALOGUES
from tests.proactor.runs import tiny_folder, values

OPTIONS = {"early": 0.0, "waiting": "ready"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def config(folder: Path, model: Path, name: str, **changes: Any) -> Path:
    file = folder / f"{name}.yaml"
    given = values(model, folder / "runs", **{"reward_options": OPTIONS, **changes})
    file.write_text(yaml.safe_dump(given | {"name": name}))
    return file


@pytest.fixture
def trained(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As for all benches of learning, with steps that take a second."""
    monkeypatch.setattr(RewardRuns, "updates", lambda self, start, budget: int(budget))
    return trained


def test_every_reward_from_one_start_and_a_second_call(
    model: Path, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = config(tmp_path, model, "one"), config(tmp_path, model, "two", sft=None)
    names = ["weighted_metric", "rac", "adaptive_ruler"]
    arguments = [
        str(first),
        str(second),
        "--rewards",
        *names,
        "--seeds",
        "1",
        "--core-seeds",
        "2",
        "--budget-seconds",
        "1",
    ]
    arguments += ["--results", str(tmp_path / "results")]
    rewards.main(arguments)
    assert trained == [
        "one-start",
        "one-weighted_metric-1u-s0",
        "one-rac-1u-s0",
        "one-rac-1u-s1",
        "one-adaptive_ruler-rule-1u-s0",
        "one-adaptive_ruler-rule-1u-s1",
        "two-rac-1u-s0",
        "two-rac-1u-s1",
        "two-adaptive_ruler-rule-1u-s0",
        "two-adaptive_ruler-rule-1u-s1",
    ]
    (file,) = (tmp_path / "results").glob("*/rewards.json")
    record = json.loads(file.read_text())
    one, two = (record["configs"][name] for name in ("one", "two"))
    assert list(one["rewards"]) == names and list(two["rewards"]) == names[1:]
    assert [one["rewards"][name]["runs"] for name in names] == [1, 2, 2]
    for name in names:
        assert one["rewards"][name]["before"] == {k: pytest.approx(one["systems"]["start"][k]) for k in KEYS}
    assert one["rewards"]["rac"]["over_rac"] == {} and one["rewards"]["adaptive_ruler"][
        "over_rac"
    ].keys() == set(KEYS)
    assert str(tmp_path) not in json.dumps(one["config"]["data"])
    shown = capsys.readouterr().out
    assert "adaptive_ruler" in shown and shown.splitlines()[-1] == f"record: {file}"

    runs = tmp_path / "runs"
    starts = {
        (runs / f"{n}-1u-s0/start/adapter_model.safetensors").read_bytes()
        for n in ("one-rac", "one-adaptive_ruler-rule")
    }
    assert starts == {(runs / "one-start/best/adapter_model.safetensors").read_bytes()}
    evaluated = {
        json.dumps(yaml.safe_load((runs / f"{n}/config.yaml").read_text())["eval"]) for n in trained[1:]
    }
    assert len(evaluated) == 1 and json.loads(evaluated.pop())["reward_options"] == OPTIONS
    trained.clear()
    rewards.main(arguments)
    assert trained == []
    rewards.main(
        [str(second), "--rewards", "rac", "--core-seeds", "2", "--budget-seconds", "1", *arguments[-2:]]
    )
    assert json.loads(file.read_text())["configs"].keys() == {"one", "two"}, "the other config's results stay"


def test_more_supervised_steps_are_a_rival(
    model: Path, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, model, "one")
    arguments = [str(file), "--rewards", "rac", "--core-seeds", "2", "--updates", "1", "--longer", "2"]
    arguments += ["--results", str(tmp_path / "results")]
    rewards.main(arguments)
    assert trained == ["one-start", "one-rac-1u-s0", "one-rac-1u-s1", "one-longer-2"]
    (written,) = (tmp_path / "results").glob("*/rewards.json")
    found = json.loads(written.read_text())["configs"]["one"]
    longer, after = found["longer"], found["rewards"]["rac"]["after"]
    assert longer["steps"] == 2 and longer["seconds"] > 0 and longer["over"].keys() == {"rac"}
    gained = longer["over"]["rac"]["reward"]["estimate"]
    assert gained == pytest.approx(after["reward"] - longer["after"]["reward"])
    run = Run(tmp_path / "runs" / "one-longer-2")
    assert [row["kind"] for row in run.rows() if row["kind"] in ("sft", "grpo")] == ["sft"] * 2
    settings = yaml.safe_load(run.config.read_text())
    assert settings["start"].endswith("one-start/best") and settings["seed"] == 1
    trained.clear()
    rewards.main(arguments)
    assert trained == []
    bare = config(tmp_path, model, "bare", sft=None)
    with pytest.raises(SystemExit, match=r"bare.yaml: has no supervised stage \(sft\)"):
        rewards.main([str(bare), *arguments[1:]])


def test_unseen_domains_and_tools_have_results_of_their_own(
    model: Path, trained: list[str], tmp_path: Path
) -> None:
    data = {
        "options": DIALOGUES | {"skills": ["set_reminder", "set_alarm", "book_table"]},
        "unseen": {"domains": ["dining"], "tools": ["set_alarm"]},
        "train": {"limit": 4},
        "dev": {"limit": 2},
        "test": {"split": None, "limit": 6},
    }
    file = config(tmp_path, model, "new", sft=None, data=data)
    given = "--rewards rac adaptive_ruler --core-seeds 1 --updates 1 --results".split()
    rewards.main([str(file), *given, str(tmp_path)])
    (record,) = tmp_path.glob("*/rewards.json")
    results = json.loads(record.read_text())["configs"]["new"]
    for reward, told in results["rewards"].items():
        assert told["parts"].keys() == {"unseen_domain", "unseen_tool"}
        assert sum(part["dialogues"] for part in told["parts"].values()) == results["dialogues"] == 6
        for part in told["parts"].values():
            assert part["difference"]["reward"]["estimate"] == pytest.approx(
                part["after"]["reward"] - part["before"]["reward"]
            )
            assert bool(part["over_rac"]) == (reward != "rac")
    played, named = load_evaluations(tmp_path / "runs/new-rac-1u-s0/evaluations.json")
    dining = {d.id for d in played if d.domain == "dining"}
    on_dev = results["rewards"]["rac"]["dev"]
    assert list(on_dev) == ["0", "1"] and {"reward", "first_fire_f1"} <= on_dev["1"].keys()
    part = results["rewards"]["rac"]["parts"]["unseen_domain"]
    own = aggregate(c for c in named["after"].contributions if c.dialogue in dining)
    assert 0 < part["dialogues"] == len(dining) < 6
    assert part["after"] == {key: pytest.approx(own[key]) for key in KEYS}
    assert part["after"]["reward"] != pytest.approx(results["rewards"]["rac"]["after"]["reward"])
    tools = results["rewards"]["rac"]["tools"]
    wanted = [r.name for d in played for r in d.references]
    assert tools["set_alarm"]["references"] == wanted.count("set_alarm")
    sides = ("before", "always", "values_seen")  # policies too: this model gets nothing right
    run = Run(tmp_path / "runs/new-rac-1u-s0")
    counted = rewards.fires_by_tool([run, run], sides)
    assert all(counted[tool]["before"] == tools[tool]["before"] for tool in tools.keys() & counted.keys())
    for side in sides:
        whole = aggregate(named[side].contributions)
        for count, key in (("fires", "first_fires"), ("right", "first_hits")):
            assert sum(line[side][count] for line in counted.values()) == pytest.approx(whole[key])
    assert counted["set_alarm"]["values_seen"]["right"] > 0


def test_the_budget_becomes_updates_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []

    def ensure(config: Path, overrides: list[str], ended: Any) -> Run:
        made.append(overrides)
        run = Run(tmp_path / "pace")
        rows = [{"kind": "grpo", "seconds": s} for s in (9.0, 2.0, 2.0, 3.0, 1.0)] + [{"kind": "eval"}]
        monkeypatch.setattr(run, "rows", lambda: rows)
        return run

    monkeypatch.setattr(reward_runs, "ensure", ensure)
    bench = RewardRuns(config(tmp_path, model, "one"), ())
    assert (bench.updates(["start=x"], 120.0), bench.updates([], 1.0)) == (60, reward_runs.CHECKS)
    assert "name=one-rewards-pace" in made[0] and "start=x" in made[0]


def test_options_and_names(model: Path, tmp_path: Path) -> None:
    file = config(tmp_path, model, "one")
    plain, engine = RewardRuns(file, ()), RewardRuns(file, (), {"kind": "engine"}, {"grading": "Grade."})
    assert plain.options("rac") == {"waiting": "ready"} and plain.options("weighted_metric") == OPTIONS
    given = ("reward=max_rac", "reward_options={}", f"eval.reward_options={json.dumps(OPTIONS)}")
    assert RewardRuns(file, given).options("weighted_metric") == OPTIONS, "those it is evaluated by"
    assert plain.options("adaptive_ruler") == {"judge": "rule", "metric_options": {"waiting": "ready"}}
    assert engine.options("custom_ruler") == {"judge": {"kind": "engine"}, "grading": "Grade."}
    assert (
        plain.label == "rule"
        and engine.label.startswith("engine-")
        and RewardRuns(file, (), "engine").label == "engine"
    )
    assert reward_runs.evaluation_overrides(RewardRuns(file, ("reward=rac", "reward_options={}")).base) == []
    for reward in rewards.REWARDS:
        load_config(file, [f"reward={reward}", f"reward_options={json.dumps(plain.options(reward))}"])
        load_reward(reward, plain.options(reward))
