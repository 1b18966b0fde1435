"""A GPU that is not there: a stopwatch, a clock, workers, rows and broken operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.card import Ceilings
from bench.gpu.report import Report
from bench.gpu.rows import OpRow
from bench.gpu.task import FORWARD, Job, Row, Setting, Task, run_task
from bench.gpu.timing import Run
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25, Op

CPU = torch.device("cpu")
CEILING = Ceilings(copy=1e9, product=1e12)


class FakeWatch:
    """A call takes 1 ms on the device and 0.1 ms on the host; every form's calls are run and noted."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.samples: list[tuple[int, float]] = []

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        for call in calls:
            call()
        self.samples.append((len(calls), lead))
        self.clock += 1e-3 * len(calls)
        return 1e-3 * len(calls), 1e-4 * len(calls)

    def now(self) -> float:
        return self.clock


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class InlineWorkers:
    """`Workers` in this process, by `FakeWatch`."""

    def __init__(self, left: Callable[[], float]) -> None:
        self.jobs: list[str] = []

    def __enter__(self) -> InlineWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, job: Job, setting: Setting, tasks: Sequence[Task], each: Any) -> list[str]:
        self.jobs.append(job.name)
        for task in tasks:
            each(run_task(task, FakeWatch())[0])
        return []


def setting(**changes: Any) -> Setting:
    values = {"device": "cpu", "seed": 3, "seconds": 0.0, "cache": 4096, "free": 2**21, "ceilings": CEILING}
    return Setting(**{**values, "dry": True, **changes})


def op_row(op: Op, passes: str = FORWARD) -> OpRow:
    return OpRow(op, QWEN25[0].name, op.cases[2], passes)


def report(folder: Path) -> Report:
    facts = {
        "card": {"name": "NVIDIA Fake 1"},
        "date": "2026-01-02",
        "commit": "abc",
        "seed": 5,
        "correctness": [],
        "ceilings": {},
        "rows": [],
        "skipped": [],
    }
    return Report(folder, facts)


def figure_of(rows: Sequence[Row]) -> Row:
    (row,) = (row for row in rows if "value" in row)
    return row


def off(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return RMS_NORM.reference(x, weight, eps) * 1.1  # type: ignore[operator]


def raises(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise ValueError("x: a reason\nand more")
