"""Weights & Biases and Trackio keep a run's numbers, offline: `make test-neighbours`."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from proactor.training.runs import Run
from tests.neighbours.conftest import Client

FIRST, DEV, SECOND = {"sft/loss": 2.5}, {"eval/loss": 2.25}, {"grpo/loss": 0.5, "grpo/reward": 1}
KEPT = {
    "wandb": [[1, FIRST | DEV], [2, SECOND]],  # one row a step
    "trackio": [[1, FIRST], [1, DEV], [2, SECOND]],
}


@pytest.mark.parametrize("tracker", KEPT)
def test_a_runs_numbers_arrive_once(tracker: str, client: Client, repo_root: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.log({"phase": "sft", "kind": "sft", "step": 1, "loss": 2.5, "grad_norm": float("inf")})
    run.log({"phase": "sft", "kind": "eval", "step": 1, "eval_loss": 2.25})
    run.log({"phase": "grpo", "kind": "grpo", "step": 2, "loss": 0.5, "reward": 1})
    packages = sysconfig.get_path("purelib")
    kept = client("trackers", "trackers_client.py", tracker, run.folder, tmp_path, repo_root, packages)
    assert kept == KEPT[tracker]
