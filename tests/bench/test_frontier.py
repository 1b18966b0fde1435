"""Success against user involvement: arms, what is reused, comparison of arms that have ended, the drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import frontier, frontier_chart
from bench.frontier_arms import EXPERIMENTS, FRONTIER, SFT, SWEEP
from bench.frontier_record import changes, gain, pushes
from proactor.config_file import load_run
from proactor.episode_config import EpisodeConfig
from proactor.methods.user_metrics import Outcome
from proactor.training.method_credit import Credit

CONFIG = """
model: {folder}/model
runs: {folder}/runs
engine: {{deterministic: true, kv_tokens: 8192}}
pretrain:
  teacher: hasty
  steps: 2
  limit: 20
  size: {{hidden: 32, layers: 2, heads: 2, kv_heads: 1, intermediate: 64, vocabulary: 700, context: 1024,
    pieces: lines}}
environment:
  gym: function_family
  options: {{signs: "+-", largest: 3, train: 60, test: 2, max_turns: 4}}
  dev: 2
  play: {{sampling: {{max_tokens: 4}}, max_tokens: 200}}
sft: {{max_steps: 1, batch_tasks: 2, thoughts: false}}
grpo: {{lr: 1e-3, steps: 1, n: 2, batch_tasks: 1}}
eval: {{resamples: 100}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return file


def test_arms_share_stage_a_and_ended_runs_are_reused(
    config: Path, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(config), "--arms", "userrl,bao", "--seeds", "1", "--results", str(tmp_path / "results")]
    frontier.main(arguments)
    assert ran == ["pretrain tiny", "train tiny-sft-s0", "train tiny-userrl-s0", "train tiny-bao-s0"]
    (file,) = (tmp_path / "results").glob("*/frontier-tiny.json")
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["arms"].keys() == {"sft", "userrl", "bao"}
    assert record["pushes"] is None and not record["hypervolume"], "the sweep is not complete"
    assert record["arms"]["bao"]["episodes"] == record["arms"]["userrl"]["episodes"] == {"0": 2.0}
    assert record["lines"]["expert"]["pass_u1"]["estimate"] == 1.0
    assert record["changes"].keys() == {"sft", "bao"}
    start = json.loads((tmp_path / "runs" / "tiny-sft-s0" / "summary.json").read_text())["after"]
    for arm in ("userrl", "bao"):
        summary = json.loads((tmp_path / "runs" / f"tiny-{arm}-s0" / "summary.json").read_text())
        assert summary["before"] == start and summary["adapter"] == "last"
    assert "not known yet" in capsys.readouterr().out
    ran.clear()
    frontier.main([*arguments, "--report"])
    assert not ran
    with pytest.raises(SystemExit, match=r"grpo.steps was 1, now 2: give the new runs another name"):
        frontier.main([*arguments, "--report", "grpo.steps=2"])
    drawing = tmp_path / "chart.svg"
    frontier_chart.main([str(file), str(drawing)])
    assert drawing.read_text().startswith("<svg xmlns=") and ">guess only</text>" in drawing.read_text()
    with pytest.raises(SystemExit):
        frontier.main([str(config), "--arms", "boa"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_run_of_its_method(name: str, config: Path, tmp_path: Path) -> None:
    base = load_run(config)
    assert isinstance(base, EpisodeConfig)
    budgets = set()
    for arm, how in EXPERIMENTS[name].arms.items():
        run = load_run(config, how.overrides(base, arm, 3))
        assert isinstance(run, EpisodeConfig)
        assert (run.name, run.seed, run.eval.adapter) == (f"tiny-{arm}-s3", 3, "last")
        if how.method is None:
            assert run.grpo is None and run.sft == base.sft
            continue
        Credit.of(run.method)  # refuses unknown options
        assert run.sft is None and run.grpo is not None
        budgets.add((run.grpo.steps, run.grpo.n, run.grpo.batch_tasks))
        cold = run.start is None
        assert cold == (arm == "bao-cold") and (cold or run.start == f"{base.runs}/tiny-sft-s3/best")
    assert len(budgets) == 1


def outcomes(score: float, user_actions: int, runs: Sequence[int] = (0, 1, 2)) -> dict[int, list[Outcome]]:
    """The same outcome of each of four tasks in each run."""
    return {
        run: [Outcome(f"t{i}", score, score >= 1, user_actions, 4, 10, run) for i in range(4)] for run in runs
    }


def test_the_frontier_moves_only_where_the_whole_interval_is_above_0() -> None:
    sweep = {name: outcomes(0.5, 2) for name in SWEEP}
    better = gain(sweep | {"bao": outcomes(0.75, 1)}, ("bao",), SWEEP, 8)
    assert better is not None and better["gain"]["estimate"] == pytest.approx(0.75 * 7 - 0.5 * 6)
    assert pushes(better) is True
    same = gain(sweep | {"bao": outcomes(0.5, 2)}, ("bao",), SWEEP, 8)
    assert same is not None and same["gain"]["estimate"] == 0 and pushes(same) is False
    assert pushes(None) is None


def test_arms_are_compared_over_the_seeds_that_they_share() -> None:
    known = {"userrl": outcomes(0.5, 2), "bao": outcomes(1.0, 1, [1, 2]), SFT: outcomes(0.2, 1, [4])}
    found = gain(known, ("bao",), ("userrl",), 8)
    assert found is not None and found["seeds"] == [1, 2]
    change = changes(known, "userrl", "bao")
    assert change is not None and change["score"].estimate == pytest.approx(0.5)
    assert changes(known, "userrl", SFT) is None and changes(known, "userrl", "userrl") is None
    assert gain(known, ("bao",), SWEEP, 8) is None


def test_the_sweep_is_the_price_alone() -> None:
    options = [FRONTIER.arms[name].method for name in SWEEP[1:]]
    assert [m["options"]["user_price"] for m in options if m] == [0.02, 0.05, 0.1, 0.2]
    assert all(m and not m["options"]["information_seeking"] + m["options"]["over_thinking"] for m in options)
