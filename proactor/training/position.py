"""Where a run is, as its state keeps it.

A handful of numbers are enough, because every step is a function of (seed, phase, step).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from proactor.files import first_problem
from proactor.training.runs import RunError


@dataclass(slots=True)
class Position:
    """Where a run is.

    ``step`` counts within the phase, ``update`` over all phases. ``best`` is the lowest held-out loss (sft)
    or the highest dev metric (grpo), reached after ``best_step``; ``stale`` counts checks since then.
    ``flat``: steps until now, in a row, that had no group to train on (episodes); ``failure``: what the last
    of them said of an environment that failed. ``nonfinite``: steps until now, in a row, that were skipped
    for a gradient that is not finite. ``memory``: what a method carries from step to step besides the
    adapter, JSON-able.
    """

    phase: str = "sft"
    step: int = 0
    update: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    flat: int = 0
    failure: str = ""
    nonfinite: int = 0
    seconds: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)


def read_position(record: dict[str, Any], file: Path) -> tuple[Position, int]:
    """(position, length of the rows in bytes) of the record in the state ``file``. RunError where it holds
    something else.
    """
    length = record.pop("metrics_bytes", None)
    missing = {"phase", "step", "update"} - record.keys() | ({"metrics_bytes"} if length is None else set())
    if missing:
        raise RunError(f"{file}: not the record of a run ({min(missing)} is missing)")
    try:
        return _POSITION.validate_python(record), int(length)
    except ValidationError as error:
        raise RunError(f"{file}: not the record of a run ({first_problem(error)})") from None


_POSITION = TypeAdapter(Position)
