"""What a job of `bench.gpu` is made of: its setting, its tasks, and the rows that they give."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.timing import Stopwatch
from proactor.kernels.ceilings import Ceilings
from proactor.kernels.op import QWEN25, ModelShape

FORWARD, BOTH = "forward", "forward+backward"
Row = dict[str, Any]
TINY = ModelShape("tiny", 128, 2, 4, 2, 64, 256, 512)
"""The model of dry runs: every path of the large ones, in milliseconds on a CPU."""
UNKNOWN = Ceilings(1.0, 1.0)
"""The ceilings before they are measured."""
SHAPES = {shape.name: shape for shape in (*QWEN25, TINY)}


class CardLost(RuntimeError):
    """The device no longer answers: a kernel has broken its context."""


class Skipped(Exception):
    """A row that cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What every job gets: device, seed, seconds to time a row, and the card's facts and ceilings.

    ``cache``: bytes of the card's cache. ``free``: bytes of free memory when the run began. ``dry``: take
    tiny cases. ``peers``: time libraries beside ours.
    """

    device: str = "cuda:0"
    seed: int = 0
    seconds: float = 1.5
    cache: int = 4096
    free: int = 2**30
    ceilings: Ceilings = UNKNOWN
    dry: bool = False
    peers: bool = True

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's."""
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class Job:
    """Tasks that one process runs in order. ``kind``: of `jobs.KINDS`; of "rows" are ``ops``, ``passes``."""

    kind: str
    model: str = QWEN25[0].name
    ops: tuple[str, ...] = ()
    passes: tuple[str, ...] = (FORWARD, BOTH)
    quick: bool = False

    @property
    def name(self) -> str:
        """The job's name for a reader."""
        return " ".join((self.kind, *self.ops, self.model))

    @property
    def shape(self) -> ModelShape:
        """The sizes of its model."""
        return SHAPES[self.model]


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement: ``run`` gives its rows, and is stopped after ``limit`` seconds."""

    name: str
    run: Callable[[Stopwatch], list[Row]]
    limit: float = 40.0


def figure(value: float, unit: str, target: float, source: str, **details: Any) -> Row:
    """A measured ``value`` beside its ``target``, which ``source`` says how to compute. Lower is better."""
    return {"value": value, "unit": unit, "target": target, "target_from": source, **details}


def attempt(work: Callable[[], object]) -> str:
    """Run ``work``; returns the reason of a failure, else "". Raises CardLost when the device is lost."""
    try:
        work()
    except (CardLost, Skipped):
        raise
    except Exception as error:  # noqa: BLE001 (a broken form must not cost the other rows)
        traceback.print_exc()  # for the row's log
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError as gone:
                raise CardLost(f"{type(error).__name__}: {error}") from gone
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:300]
    return ""


def run_task(task: Task, watch: Stopwatch) -> tuple[list[Row], bool]:
    """(the task's rows, whether the card is lost). What went wrong is a row with "failed" or "skipped"."""
    rows: list[Row] = []
    try:
        problem = attempt(lambda: rows.extend(task.run(watch)))
    except Skipped as why:
        return [{"name": task.name, "skipped": str(why)}], False
    except CardLost as lost:
        first = (str(lost).strip().splitlines() or [""])[0]
        return [{"name": task.name, "failed": f"the card is lost: {first}"[:300]}], True
    if problem:
        rows = [{"failed": problem}]
    return [{"name": task.name} | row for row in rows], False


def available(setting: Setting) -> int:
    """Bytes of memory that are free now."""
    if setting.device == "cpu":
        return setting.free
    return int(torch.cuda.mem_get_info(setting.torch_device)[0])
