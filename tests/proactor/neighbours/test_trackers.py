"""A run's rows for trackers; the trackers themselves: `tests/neighbours/test_trackers.py`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from proactor.files import SourceError
from proactor.neighbours.trackers import replay
from proactor.training.runs import Run


class Kept:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.calls.append((step, values))


def test_a_tracker_gets_what_tensorboard_has_and_each_row_once(tmp_path: Path) -> None:
    run, tracker = Run(tmp_path / "r"), Kept()
    run.folder.mkdir()
    run.log({"phase": "sft", "kind": "sft", "step": 1, "loss": 0.5, "grad_norm": float("nan"), "note": "x"})
    run.log({"phase": "sft", "kind": "eval", "step": 1, "eval_loss": 0.25})
    sent = replay(run.folder, tracker)
    run.log({"phase": "grpo", "kind": "grpo", "step": 2, "reward": 1})
    sent = replay(str(run.folder), tracker, sent)
    assert replay(run.folder, tracker, sent) == sent == 3
    assert [step for step, _ in tracker.calls] == [1, 1, 2]
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    board = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    told = defaultdict(list)
    for step, values in tracker.calls:
        for tag, value in values.items():
            told[tag].append((step, value))
    assert told == board and board.keys() == {"sft/loss", "eval/loss", "grpo/reward"}


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"metrics\.jsonl: no such file"):
        replay(tmp_path, Kept())
