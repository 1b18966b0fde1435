"""Agent-Omit and SAND beside training without them: arms, budgets, what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import relatives
from bench.relatives import EXPERIMENTS, START, Study, measures, verdict
from proactor.config_file import load_run
from proactor.engine import ProactorError
from proactor.episode_config import EpisodeConfig
from proactor.scoring.bootstrap import Interval
from proactor.training.method_credit import Credit

CONFIG = """
model: {folder}/model
runs: {folder}/runs
engine: {{deterministic: true, kv_tokens: 16384}}
pretrain:
  teacher: hasty
  steps: 2
  limit: 20
  size: {{hidden: 32, layers: 2, heads: 2, kv_heads: 1, intermediate: 64, vocabulary: 700, context: 2048,
    pieces: lines, batch: 4}}
environment:
  gym: function_family
  options: {{signs: "+-", largest: 2, train: 40, test: 2, max_turns: 4}}
  dev: 1
  play: {{sampling: {{max_tokens: 3}}, max_tokens: 2000}}
sft: {{max_steps: 1, batch_tasks: 2}}
eval: {{resamples: 100}}
"""
OMIT = """
method: {name: agent_omit, options: {cold_tasks: 1, tries: 1, instruct: false}}
grpo: {lr: 1e-3, steps: 1, n: 2, batch_tasks: 1}
"""
SAND = """
method:
  name: sand
  options: {candidates: 2, iterations: 1, updates: 3, batch_tasks: 2, tasks: 1, critic: rule}
"""


def study(folder: Path, more: str) -> Study:
    file = folder / "tiny.yaml"
    file.write_text(CONFIG.format(folder=folder) + more)
    base = load_run(file)
    assert isinstance(base, EpisodeConfig)
    return Study(file, [], base, EXPERIMENTS[base.method.name])


def recorded(made: Study, folder: Path, *arguments: str) -> dict[str, Any]:
    relatives.main([str(made.config), "--seeds", "1", "--results", str(folder / "results"), *arguments])
    (file,) = (folder / "results").glob("*/*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_omit_s_arms_begin_at_one_stage_a(ran: list[str], tmp_path: Path) -> None:
    made = study(tmp_path, OMIT)
    record = recorded(made, tmp_path, "--arms", "task,omit")
    assert ran == ["pretrain tiny", "train tiny-start-s0", "train tiny-task-s0", "train tiny-omit-s0"]
    assert record["arms"].keys() == {"start", "task", "omit"} and record["changes"].keys() == {
        "start",
        "omit",
    }
    start = json.loads((tmp_path / "runs" / "tiny-start-s0" / "summary.json").read_text())["after"]
    for arm in ("task", "omit"):
        summary = json.loads((tmp_path / "runs" / f"tiny-{arm}-s0" / "summary.json").read_text())
        assert summary["before"] == start and summary["adapter"] == "last"
    assert (
        record["arms"]["omit"]["tokens"]["estimate"] > 0
        and "omit/partials" in record["arms"]["omit"]["counts"]["0"]
    )
    ran.clear()
    recorded(made, tmp_path, "--report")
    assert not ran


def test_sft_gets_the_tokens_that_sand_trained(ran: list[str], tmp_path: Path) -> None:
    made = study(tmp_path, SAND)
    with pytest.raises(ProactorError, match="has not ended, and the budget of the other arm comes from it"):
        made.settings("sft", 0)
    record = recorded(made, tmp_path)
    assert ran == ["pretrain tiny", "train tiny-sand-s0", "train tiny-sft-s0"]
    tokens = [record["arms"][arm]["counts"]["0"]["tokens_trained"] for arm in ("sand", "sft")]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.35)  # whole updates of a few tasks
    assert "sand/flagged" in record["arms"]["sand"]["counts"]["0"]
    assert record["changes"].keys() == {"sand"}


@pytest.mark.parametrize("more", [OMIT, SAND])
def test_every_arm_is_a_run_of_its_method(more: str, tmp_path: Path) -> None:
    made = study(tmp_path, more)
    for arm in made.experiment.arms:
        if arm == made.experiment.reference and made.experiment.matched:
            continue  # its budget comes from a run
        run = load_run(made.config, made.settings(arm, 3))
        assert isinstance(run, EpisodeConfig) and run.seed == 3 and run.eval.adapter == "last"
        Credit.of(run.method)  # refuses unknown options
        if made.experiment.shared_start:
            assert run.sft is None and run.start == f"{made.base.runs}/tiny-{START}-s3/best"


def test_tokens_per_success_and_the_verdict() -> None:
    found = measures(np.array([[4.0, 2.0, 100.0], [4.0, 0.0, 100.0]]))
    assert found["tokens_per_success"][0] == 50 and np.isnan(found["tokens_per_success"][1])
    assert found["solved"].tolist() == [0.5, 0.0] and found["tokens"].tolist() == [25.0, 25.0]
    assert verdict(
        {"solved": Interval(0, -0.019, 0.1, 0.95), "tokens_per_success": Interval(-5, -9, -1, 0.95)}
    ) == {
        "not_lower": True,
        "higher": False,
        "fewer_tokens": True,
    }
    assert not verdict(
        {"solved": Interval(0, -0.021, 0.1, 0.95), "tokens_per_success": Interval(0, -9, 1, 0.95)}
    )["not_lower"]
