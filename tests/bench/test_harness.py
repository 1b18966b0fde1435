"""The comparison with TRL: end to end in seconds; sides that do not compute the same are not timed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench import harness
from bench.harness import check_work, gate
from bench.probes import chat_tokenizer
from bench.workloads import DIALOGUE, EPISODES, SHORT, Workload, gate_batch, reward

TINY = Workload("tiny", (5, 9), samples=4, max_tokens=3)
TURNS = Workload("turns", (111, 111), samples=4, max_tokens=4, turns=3, observation=14)


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


def test_a_mask_leaves_observations_out() -> None:
    work = Workload("turns", (5,), samples=2, max_tokens=2, turns=3, observation=1)
    assert work.mask == [True, True, False, True, True, False, True, True]
    assert work.work == {"prompt": 10, "completion": 16, "drawn": 12}
    assert TINY.work == {"prompt": 56, "completion": 24, "drawn": 24}
    assert {tuple(sample["mask"]) for sample in gate_batch(work)} == {tuple(work.mask)}
    assert all(len(sample["completion"]) == len(sample["noise"]) == 8 for sample in gate_batch(work))


def test_other_work_than_asked_for_is_refused() -> None:
    check_work(EPISODES, "side", {**EPISODES.work, "completion": EPISODES.work["completion"] - 2})
    with pytest.raises(SystemExit, match=r"^side: 10 drawn tokens in a step, 12 were asked for"):
        check_work(
            Workload("turns", (5,), samples=2, max_tokens=2, turns=3, observation=1),
            "side",
            {"prompt": 10, "completion": 16, "drawn": 10},
        )


Compare = Callable[[Workload, Any], dict[str, Any]]


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Compare]:
    """Compares in this process; the sides are processes of their own."""

    def run(workload: Workload, tokenizer: Any) -> dict[str, Any]:
        found = harness.compare(workload, ["--repeats", "1", "--results", str(tmp_path)], tokenizer)
        record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        (saved,) = tmp_path.glob(f"*/{workload.name}.json")
        assert json.loads(saved.read_text()) == record == json.loads(json.dumps(found))
        assert record["speedup"] > 0
        assert record["agreement"]["gradient_max_relative_difference"] < 1e-4
        return record

    monkeypatch.setattr(harness, "logging", SimpleNamespace(disable=lambda level: None, WARNING=0))
    with warnings.catch_warnings():
        yield run


needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="the peer is not installed (pip install -e .[bench])"
)


@needs_trl
def test_comparison_end_to_end(compare: Compare) -> None:
    ours, theirs = compare(TINY, None)["sides"]
    assert ours["tokens_computed"]["train"] == 5 + 9 + 8 * (
        3 - 1
    )  # every prompt once, and no row for a last token
    assert theirs["tokens_computed"]["train"] == 8 * (9 + 3)
    assert "generate" in ours["phases"]


@needs_trl
def test_episodes_end_to_end(compare: Compare) -> None:
    record = compare(TURNS, chat_tokenizer())
    ours, theirs = record["sides"]
    assert theirs["tokens_computed"] == {
        "generate": 8 * sum(111 + 18 * turn + 3 for turn in range(3)),  # all that came before, at each turn
        "train": 8 * (111 + 40),
    }
    assert ours["tokens_computed"]["train"] == 111 + 8 * (40 - 1)  # one prompt, whatever the task
    assert ours["tokens_computed"]["generate"] < 111 + 8 * 40
    assert record["tokens_ratio"]["train"] == round(8 * 151 / (111 + 8 * 39), 3)
