"""A GPU that is not there: a stopwatch, a clock, rows and broken operations for tests of `bench.gpu`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.report import Report
from bench.gpu.rows import FORWARD, Job, Machine
from bench.gpu.timing import Ceilings, Run
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


def machine() -> Machine:
    return Machine(CPU, cache=4096, free=2**20)


def job(op: Op, passes: str = FORWARD) -> Job:
    return Job(op, QWEN25[0], op.cases[2], passes)


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


def off(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return RMS_NORM.reference(x, weight, eps) * 1.1  # type: ignore[operator]


def raises(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise ValueError("x: a reason\nand more")
