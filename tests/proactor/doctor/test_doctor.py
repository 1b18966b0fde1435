"""Each rule fires on a run that is broken so, and all are silent on a healthy one.

What is cheap to break is broken: a real run of some steps on the tiny model. The others are the records of
the healthy run, edited.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from proactor.config import Data
from proactor.doctor.diagnosis import RULES, diagnose, diagnose_folder
from proactor.doctor.facts import Facts, Finding, Row
from proactor.training.loop import train
from proactor.training.provenance import FitSteps, write_provenance
from tests.proactor.commands.calls import call, refusal
from tests.proactor.report.episode_runs import write_run
from tests.proactor.runs import WIDE, config, config_file

SHORT = (
    "sft=null",
    "engine.deterministic=false",
    "grpo.batch_dialogues=4",
    "grpo.sampling.n=4",
    "grpo.sampling.max_tokens=40",
    "eval.max_tokens=40",
    "grpo.eval_every=2",
    "save_every=100",
)


def constant_reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """A reward that tells nothing apart."""
    return [0.5] * len(completions)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def healthy(tiny_model: Path, root: Path) -> Facts:
    settings = config(root, tiny_model, *SHORT, "name=healthy", "grpo.steps=8", data=WIDE)
    train(settings)
    # From random weights all that eight steps teach is to wait: as if it acted on dev.
    metrics = settings.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [{**row, "eval_rar": 0.5} if row["kind"] == "eval" else row for row in rows]
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Facts.read(settings.folder)


@pytest.fixture(scope="module")
def episodes(root: Path) -> Facts:
    """A made-up run in an environment that learns."""
    facts = Facts.read(write_run(root / "episodes"))
    assert facts.in_environment
    return facts


def found(facts: Facts) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose(facts)}


# -- healthy runs ---


def test_every_rule_is_silent_on_healthy_runs(healthy: Facts, episodes: Facts) -> None:
    result = healthy.outcome
    assert result is not None and result.best_step > 0 and len(healthy.steps) == 8, "it did learn"
    assert [rule(healthy) for rule in RULES] == [None] * len(RULES)
    assert [rule(episodes) for rule in RULES] == [None] * len(RULES)


# -- real runs, broken ---

BROKEN = {
    "hot": (("grpo.lr=0.3", "grpo.steps=4"), "collapse", "grpo.lr=0.03"),
    "cold": (("grpo.lr=1e-9", "grpo.steps=2"), "nothing moves", "grpo.lr=1e-05"),
    "cut": (
        ("grpo.sampling.max_tokens=1", "grpo.steps=2"),
        "truncated",
        "grpo.sampling.max_tokens=2 eval.max_tokens=2",
    ),
    "greedy": (
        ("grpo.sampling.temperature=0.01", "grpo.steps=2"),
        "groups without spread",
        "grpo.sampling.temperature=1.0",
    ),
    "noise": (("grpo.sampling.temperature=5", "grpo.steps=2"), "unparsed", "grpo.sampling.temperature=1.0"),
    "constant": (
        ("reward=tests.proactor.doctor.test_doctor:constant_reward", "grpo.steps=2"),
        "groups without spread",
        "reward=weighted_metric",
    ),
    "start": (("grpo.lr=1e-9", "grpo.steps=1"), "GRPO never beat its start", "grpo.steps=2"),
}
"""By name: overrides, the finding that must be there, and the beginning of its remedy."""


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_is_broken_is_told_so(tiny_model: Path, root: Path, name: str) -> None:
    overrides, finding, remedy = BROKEN[name]
    settings = config(root, tiny_model, *SHORT, "eval.final=false", f"name={name}", *overrides, data=WIDE)
    train(settings)
    findings = {f.name: f for f in diagnose_folder(settings.folder)}
    assert findings[finding].remedy.startswith(remedy), findings
    first = next(iter(findings))
    assert first == finding or name in ("noise", "start"), "the cause comes first"


def test_what_comes_with_a_collapse_is_not_named_beside_it(healthy: Facts) -> None:
    ruin = {"reward_mean": -0.1, "reward_std": 0.0, "zero_spread_share": 1.0, "unparsed_share": 1.0}
    facts = with_checks(with_steps(healthy, **ruin, beginning=2), 0.0)
    assert list(found(facts)) == ["collapse", "GRPO never beat its start"]
    better = with_checks(with_steps(healthy, **ruin, beginning=2), 0.9)
    assert "collapse" not in found(better), "dev rose: the reward of training measures something else"


# -- records, edited ---


def with_steps(facts: Facts, beginning: int = 0, **changes: Any) -> Facts:
    """The facts with other values in the rows of steps, from the step at ``beginning`` on."""
    left = [beginning]

    def edited(row: Row) -> Row:
        if row["kind"] != "grpo":
            return row
        left[0] -= 1
        return row if left[0] >= 0 else {**row, **changes}

    return replace(facts, rows=tuple(edited(row) for row in facts.rows))


def with_checks(facts: Facts, value: float) -> Facts:
    """The facts with ``value`` as the reward on dev at every check but the first."""
    seen = [0]

    def edited(row: Row) -> Row:
        if row["kind"] != "eval":
            return row
        seen[0] += 1
        return row if seen[0] == 1 else {**row, "eval_reward": value}

    return replace(facts, rows=tuple(edited(row) for row in facts.rows))


def silenced(facts: Facts, before: float = 0.5, after: float = 0.3) -> Facts:
    """A run whose updates pull away from acting; its recall on dev goes from ``before`` to ``after``."""
    pulls = {"pull/ready": 0.08, "pull/not_ready": -0.19, "acts/ready": 0.45, "acts/not_ready": 0.23}
    edited = with_steps(facts, **pulls)
    checks = [i for i, row in enumerate(edited.rows) if row["kind"] == "eval"]
    rows = [
        {**row, "eval_recall": before if i == checks[0] else after} if i in checks else row
        for i, row in enumerate(edited.rows)
    ]
    return replace(edited, rows=tuple(rows))


def waiting(facts: Facts, *, others: float) -> Facts:
    """A run whose best check fires nothing; the recall of the others is ``others``."""
    checks = [i for i, row in enumerate(facts.rows) if row["kind"] == "eval"]
    silent = {"eval_reward": 0.9, "eval_recall": 0.0, "eval_rar": 0.0}
    acting = {"eval_reward": 0.4, "eval_recall": others, "eval_rar": 0.5}
    rows = [
        {**row, **(silent if i == checks[-1] else acting)} if i in checks else row
        for i, row in enumerate(facts.rows)
    ]
    return replace(facts, rows=tuple(rows))


def with_config(facts: Facts, **sections: Any) -> Facts:
    merged = {k: {**(facts.record.config.get(k) or {}), **v} for k, v in sections.items()}
    return replace(facts, record=replace(facts.record, config={**facts.record.config, **merged}))


def with_windows(facts: Facts, **shares: float) -> Facts:
    return replace(facts, record=replace(facts.record, summary={"windows": shares}))


def supervised(facts: Facts, *losses: float) -> Facts:
    checks = [{"phase": "sft", "kind": "eval", "step": i, "held_out_loss": x} for i, x in enumerate(losses)]
    update = {"phase": "sft", "kind": "sft", "step": 1, "loss": 1.0}
    return replace(facts, rows=(checks[0], update, *checks[1:]))


def learned_by_heart(facts: Facts) -> Facts:
    return with_checks(with_steps(with_steps(facts, reward_mean=0.3), 6, reward_mean=0.9), 0.3)


def drifting(facts: Facts) -> Facts:
    """A run of twenty steps in whose course the gap grows, to less than what counts as large in the mean."""
    return replace(facts, rows=tuple({**facts.steps[0], "sampler_trainer_gap": i / 1000} for i in range(20)))


EDITS: dict[str, tuple[Callable[[Facts], Facts], str, str]] = {
    "flat": (
        lambda f: with_checks(with_steps(replace(f, samples=()), zero_spread_share=0.97), 0.1),
        "groups without spread",
        "grpo.sampling.temperature=1.2 grpo.sampling.n=8",
    ),
    "form": (
        lambda f: with_steps(f, unparsed_share=0.9, **{"unread/no_json": 50.0}),
        "unparsed",
        "sft={lr: 1e-3}",
    ),
    "form, taught": (
        lambda f: with_config(with_steps(f, unparsed_share=0.9), sft={"max_steps": 40}),
        "unparsed",
        "sft.max_steps=80",
    ),
    "silence": (
        silenced,
        "learns silence",
        "grpo.sampling.temperature=0.5, or a start that was trained for longer",
    ),
    "silence, cold": (
        lambda f: with_config(silenced(f), grpo={"sampling": {"temperature": 0.5}}, sft={"max_steps": 40}),
        "learns silence",
        "sft.max_steps=80",
    ),
    "waits": (lambda f: waiting(f, others=0.3), "never acts", "eval.metric=first_fire_f1"),
    "waits, untaught": (lambda f: waiting(f, others=0.0), "never acts", "sft={lr: 1e-3}"),
    "waits, taught": (
        lambda f: with_config(waiting(f, others=0.0), sft={"max_steps": 40}),
        "never acts",
        "sft.max_steps=80",
    ),
    "nan": (lambda f: with_steps(f, 5, nonfinite_gradient=1.0), "gradient not finite", "grpo.lr=0.001"),
    "pre-training": (
        lambda f: replace(f, pretrained=FitSteps(made=40, wanted=400, seconds=2.0, settled=False)),
        "model cut short",
        "model=runs/models/NEW pretrain.seconds=30 ",
    ),
    "skipped": (
        lambda f: with_steps(f, skipped_update=1.0, groups_dropped=3.0),
        "no update",
        "see the judge",
    ),
    "by heart before": (
        lambda f: with_steps(f, entropy=0.001, zero_spread_share=0.9),
        "memorised",
        "pretrain.share=",
    ),
    "by heart, taught": (
        lambda f: with_config(with_steps(f, entropy=0.001, zero_spread_share=0.9), sft={"max_steps": 40}),
        "memorised",
        "sft.max_steps=20",
    ),
    "by heart after": (learned_by_heart, "memorised", "data.train.limit=null"),
    "clipped": (lambda f: with_steps(f, clip_share=0.4), "clipped", "grpo.lr=0.00333"),
    "clipped, epochs": (
        lambda f: with_config(with_steps(f, clip_share=0.4), grpo={"epochs": 4}),
        "clipped",
        "grpo.epochs=1",
    ),
    "gap": (
        lambda f: with_steps(f, sampler_trainer_gap=0.2),
        "sampler-trainer gap",
        "engine.deterministic=true on a CPU",
    ),
    "gap, not corrected": (
        lambda f: with_config(with_steps(f, sampler_trainer_gap=0.2), grpo={"importance_cap": None}),
        "sampler-trainer gap",
        "grpo.importance_cap=auto, or engine.deterministic=true on a CPU",
    ),
    "gap grows": (drifting, "gap grows", "engine.deterministic=true on a CPU, or grpo.lr=0.00333"),
    "sft": (lambda f: supervised(f, 1.0, 1.3, 1.6), "supervised loss rises", "sft.lr=0.0001"),
    "sft start": (lambda f: supervised(f, 1.0, 1.01), "SFT never beat its start", "sft.lr="),
    "judge fails": (
        lambda f: with_steps(f, **{"judge/groups": 9.0, "judge/dropped_groups": 5.0, "judge/timed_out": 5.0}),
        "judge without verdict",
        "reward_options.timeout=",
    ),
    "judge flat": (
        lambda f: with_steps(f, **{"judge/spread": 0.001}),
        "judge without spread",
        "reward_options.rubric=general",
    ),
    "judge odd": (
        lambda f: with_steps(f, **{"judge/spread": 0.2, "judge/agreement": 0.45, "judge/pairs": 20.0}),
        "judge without agreement",
        "reward=adaptive_ruler",
    ),
    "points": (
        lambda f: with_windows(f, width_0_share=0.9, null_share=0.1),
        "windows are points",
        "annotate again",
    ),
    "points, chosen": (
        lambda f: with_config(f, data={"labels": "points"}),
        "windows are points",
        "data.labels=windows",
    ),
    "unknown": (
        lambda f: with_windows(f, width_0_share=0.2, null_share=0.7),
        "windows are unknown",
        "proactor annotate",
    ),
}
"""By name: the edit of a healthy run on dialogues, the finding, and the beginning of its remedy."""

WORLDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "raises": (
        {"episodes_failed": 12.0, "ending/error": 12.0},
        "episodes fail",
        "environment.host.workers=processes",
    ),
    "hangs": (
        {"episodes_failed": 12.0, "ending/timeout": 12.0, "ending/error": 0.0},
        "episodes fail",
        "environment.host.timeout=120",
    ),
    "empty": (
        {"episodes_without_turns": 12.0},
        "episodes without turns",
        "environment.play.max_tokens=8192",
    ),
    "flat": (
        {"groups_without_spread": 90.0, "groups_with_spread": 1.0},
        "groups without spread",
        "environment.play.sampling.temperature=1.2 grpo.n=16",
    ),
    "cut": ({"truncated_share": 0.8}, "truncated", "environment.play.sampling.max_tokens="),
}
"""The same for a run in an environment."""


@pytest.mark.parametrize("name", EDITS)
def test_records_that_are_broken_are_told_so(healthy: Facts, name: str) -> None:
    edit, finding, remedy = EDITS[name]
    findings = found(edit(healthy))
    assert findings[finding].remedy.startswith(remedy), findings


def test_a_run_that_goes_on_acting_has_not_learnt_silence(healthy: Facts) -> None:
    assert "learns silence" not in found(silenced(healthy, 0.5, 0.45)), "recall hardly fell"
    for pulls, why in (
        ({"pull/ready": 0.2}, "the pull was toward acting"),
        ({"pull/not_ready": -0.1}, "the pull was as large as chance"),
        ({"pull/ready": -0.3, "pull/not_ready": -0.01}, "what it does where something is ready is wrong"),
        ({"reward_mean": -0.9}, "it collapsed"),
    ):
        changed = with_steps(silenced(healthy), 4 if "reward_mean" in pulls else 0, **pulls)
        if "reward_mean" in pulls:
            changed = with_checks(changed, 0.0)
        assert "learns silence" not in found(changed), why


@pytest.mark.parametrize("name", WORLDS)
def test_episodes_that_are_broken_are_told_so(episodes: Facts, name: str) -> None:
    changes, finding, remedy = WORLDS[name]
    findings = found(with_steps(episodes, **changes))
    assert findings[finding].remedy.startswith(remedy), findings


def test_every_rule_has_a_run_that_it_fires_on(healthy: Facts, episodes: Facts) -> None:
    edited = [edit(healthy) for edit, _, _ in EDITS.values()]
    edited += [with_steps(episodes, **changes) for changes, _, _ in WORLDS.values()]
    edited.append(with_checks(with_steps(healthy, beginning=2, reward_mean=-0.1), 0.0))  # a collapse
    cold = with_config(with_steps(healthy, lr=1e-9), grpo={"lr": 1e-9})
    edited.append(
        replace(cold, rows=tuple({**r, "eval_reward": 0.5} if r["kind"] == "eval" else r for r in cold.rows))
    )
    silent = [rule.__name__ for rule in RULES if not any(rule(facts) for facts in edited)]
    assert not silent


@pytest.mark.parametrize(
    "steps",
    [
        FitSteps(made=400, wanted=400, seconds=2, settled=False),
        FitSteps(made=250, wanted=400, seconds=2, settled=True),
        FitSteps(made=40, wanted=None, seconds=2, settled=False),
    ],
    ids=["all steps", "stopped falling", "by time"],
)
def test_a_model_that_was_trained_as_wanted_is_no_finding(healthy: Facts, steps: FitSteps) -> None:
    assert not found(replace(healthy, pretrained=steps))


def test_the_record_of_the_model_is_found_beside_the_run_too(
    healthy: Facts, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = tmp_path / "runs" / "moved", tmp_path / "runs" / "moved" / "models" / "small"
    shutil.copytree(root / "runs" / "healthy", run)
    model.mkdir(parents=True)
    write_provenance(model, Data(source="synthetic"), FitSteps(made=3, wanted=9, seconds=2, settled=False))
    for place, folder in (("models/small", tmp_path), (str(model), tmp_path), ("models/small", run)):
        values = yaml.safe_load((run / "config.yaml").read_text()) | {"model": place}
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        monkeypatch.chdir(folder)
        (finding,) = diagnose_folder(run)
        assert finding.name == "model cut short" and "after 3 of 9 steps" in finding.evidence


def test_the_worst_comes_first(healthy: Facts) -> None:
    facts = with_windows(with_steps(healthy, nonfinite_gradient=1.0, clip_share=0.5), width_0_share=0.9)
    weights = [finding.weight for finding in diagnose(facts)]
    assert weights == sorted(weights, reverse=True) and len(weights) == 3


# -- the command ---


def test_the_command_is_silent_with_code_0_or_ends_with_1(
    healthy: Facts, tiny_model: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("doctor", root / "runs" / "healthy")
    assert f"healthy, by {len(RULES)} rules" in capsys.readouterr().out
    file = config_file(root, tiny_model, data=WIDE)
    call("train", file, *SHORT, "eval.final=false", "grpo.steps=1", "grpo.sampling.max_tokens=1", "name=told")
    said = capsys.readouterr().out
    assert "doctor: truncated and " in said and "proactor doctor " in said
    with pytest.raises(SystemExit) as end:
        call("doctor", root / "runs" / "told")
    assert end.value.code == 1
    table = capsys.readouterr().out
    for word in ("truncated", "hinders", "100%", "answers", "grpo."):  # cells wrap at the terminal's width
        assert word in table


def test_a_run_without_a_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run" in refusal(capsys, "doctor", tmp_path / "none")
    assert f"{tmp_path}: no run's folder" in refusal(capsys, "doctor", tmp_path)
    (tmp_path / "config.yaml").write_text("name: begun\n")
    assert "has not made a training step yet" in refusal(capsys, "doctor", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "phase": "grpo"}\n')
    assert "has not made a training step yet" in refusal(capsys, "doctor", tmp_path)
