"""The comparison with TRL: end to end in seconds; sides that do not compute the same are not timed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench.harness import gate
from bench.workloads import DIALOGUE, SHORT, Workload, gate_batch, reward

TINY = Workload("tiny", (5, 9), samples=4, max_tokens=3)
RUN = (
    "from bench.harness import compare; from bench.workloads import Workload; "
    f"compare({TINY!r}, ['--repeats', '1', '--results', '%s'])"
)


class FakeSide:
    """Answers the gate with fixed numbers, some of them altered."""

    def __init__(
        self, name: str, logprob: float = 0.0, loss: float = 1.0, gradient: float = 1.0, tensor: str = "a"
    ) -> None:
        self.name, self.logprob, self.loss, self.gradient, self.tensor = name, logprob, loss, gradient, tensor

    def call(self, **command: Any) -> dict[str, Any]:
        batch = command["batch"]
        if "old" not in batch[0]:
            return {"logprobs": [[-1.0 + self.logprob] * len(s["completion"]) for s in batch]}
        Path(command["out"]).mkdir()
        save_file(
            {self.tensor: torch.tensor([1.0, self.gradient])},
            Path(command["out"]) / "adapter_model.safetensors",
        )
        return {"loss": self.loss}


def test_gate_passes_equal_sides(tmp_path: Path) -> None:
    differences = gate(FakeSide("a"), FakeSide("b", logprob=1e-6), TINY, tmp_path, tmp_path)  # type: ignore[arg-type]
    assert differences["logprob_max_difference"] < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [{"logprob": 1e-3}, {"loss": 1.001}, {"gradient": 1.001}, {"loss": float("nan")}, {"tensor": "b"}],
)
def test_gate_refuses_sides_that_differ(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="gate: "):
        gate(FakeSide("a", **wrong), FakeSide("b"), TINY, tmp_path, tmp_path)  # type: ignore[arg-type]


def test_workloads_are_what_they_say() -> None:
    assert (len(SHORT.lengths), SHORT.samples, SHORT.max_tokens) == (8, 8, 64)
    assert (min(SHORT.lengths), max(SHORT.lengths)) == (4, 40)
    assert (len(DIALOGUE.lengths), min(DIALOGUE.lengths), max(DIALOGUE.lengths)) == (8, 450, 660)
    turns = DIALOGUE.prompts(3)
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(turns))
    assert SHORT.prompts(0) != SHORT.prompts(1)
    assert SHORT.prompts(1) == Workload.from_json(json.loads(json.dumps(SHORT.to_json()))).prompts(1)
    assert len({reward(s["completion"]) for s in gate_batch(SHORT)}) > 5


@pytest.fixture
def compare(repo_root: Path, tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    def run() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", RUN % tmp_path], cwd=repo_root, env=env, capture_output=True, text=True
        )

    return run


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="the peer is not installed (pip install -e .[bench])"
)
def test_comparison_end_to_end(
    compare: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = compare()
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = record["sides"]
    assert record["speedup"] > 0
    assert record["agreement"]["gradient_max_relative_difference"] < 1e-4
    assert ours["tokens_computed"]["train"] == 5 + 9 + 8 * (
        3 - 1
    )  # every prompt once, and no row for a last token
    assert theirs["tokens_computed"]["train"] == 8 * (9 + 3)
    assert "generate" in ours["phases"]
    (saved,) = tmp_path.glob("*/tiny.json")
    assert json.loads(saved.read_text()) == record
