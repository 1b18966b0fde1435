"""What a run's folder says, as the rules of the doctor look at it; and what a rule finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from proactor.files import SourceError, parse_json, read_bytes
from proactor.training.outcome import Outcome, outcome
from proactor.training.provenance import FitSteps, read_steps
from proactor.training.record import RunRecord
from proactor.training.run_model import model_place
from proactor.training.runs import SAMPLES, read_rows

Row = Mapping[str, Any]

COLLAPSE = 0.35
"""Fall of the training reward, in standard deviations of the first steps' samples, from which on a run has
collapsed [INFERRED: measured on runs of the function gym; those that went on learning fell by at most 0.34].
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a run. ``weight``: 4 nothing can be learned, 3 next to nothing, 2 less than could
    be, 1 worth knowing. ``remedy`` begins with the config key and a value to try, where there is one.
    """

    name: str
    weight: int
    evidence: str
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The records of a run. ``samples``: those of the last step that wrote any. ``pretrained``: how far the
    pre-training of its model came, where the model's folder is there and says so.
    """

    record: RunRecord
    rows: tuple[Row, ...]
    samples: tuple[Row, ...] = ()
    pretrained: FitSteps | None = None

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """The facts of a run's folder. Raises SourceError for a file that cannot be read, and for a run that
        has not made a step.
        """
        metrics = folder / "metrics.jsonl"
        rows = read_rows(metrics) if metrics.exists() else []
        if not any(row.get("kind") in ("sft", "grpo", "sand") for row in rows):
            raise SourceError(f"{folder}: has not made a training step yet")
        files = [file for file in (folder / "samples").glob("*.jsonl") if SAMPLES.fullmatch(file.name)]
        last = max(files, key=lambda file: file.name.rpartition("-")[2], default=None)
        samples = _lines(last) if last is not None else ()
        record = RunRecord.read(folder)
        model = record.config.get("model")
        pretrained = None
        if isinstance(model, str):
            with suppress(SourceError):  # a damaged record of the model is no fault of the run
                pretrained = read_steps(model_place(folder, model))
        return cls(record, tuple(rows), samples, pretrained)

    @property
    def steps(self) -> tuple[Row, ...]:
        """The rows of GRPO's steps."""
        return tuple(row for row in self.rows if row.get("kind") == "grpo")

    @property
    def settled(self) -> tuple[Row, ...]:
        """The later half of GRPO's steps; of a run that collapsed its first quarter, since what comes with a
        collapse is not a cause.
        """
        steps = self.steps
        return first_quarter(steps) if self.collapsed else steps[len(steps) // 2 :]

    @property
    def collapsed(self) -> bool:
        """Whether the training reward fell by `COLLAPSE`, and dev, where it was played again, fell too."""
        steps, result = self.steps, self.outcome
        begin, end = mean(first_quarter(steps), "reward_mean"), mean(last_quarter(steps), "reward_mean")
        deviation = mean(first_quarter(steps)[:1], "reward_std")
        if len(steps) < 2 or begin is None or end is None or not deviation:
            return False
        worse = result is None or result.start is None or result.end is None or result.end <= result.start
        return worse and begin - end >= COLLAPSE * deviation

    @property
    def outcome(self) -> Outcome | None:
        """What the last stage achieved on its own measure; None before the first check."""
        return outcome(
            self.rows, str(self.setting("eval.metric", "score" if self.in_environment else "reward"))
        )

    @property
    def in_environment(self) -> bool:
        """Whether it is a run in an environment."""
        return self.record.in_environment

    @property
    def sampling(self) -> str:
        """The place of the sampling settings in the config."""
        return "environment.play.sampling" if self.in_environment else "grpo.sampling"

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key of the run's config; ``default`` where there is none."""
        value: Any = self.record.config
        for step in key.split("."):
            if not isinstance(value, Mapping) or value.get(step) is None:
                return default
            value = value[step]
        return value

    def number(self, key: str, default: float) -> float:
        """A number of the run's config."""
        value = self.setting(key, default)
        return float(value) if isinstance(value, int | float) else default


Rule = Callable[[Facts], Finding | None]


def values(rows: Sequence[Row], key: str) -> list[float]:
    """The numbers under a key, without rows that have none (or NaN, which is written as null)."""
    return [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]


def mean(rows: Sequence[Row], key: str) -> float | None:
    """Their mean, None without any."""
    found = values(rows, key)
    return fmean(found) if found else None


def total(rows: Sequence[Row], key: str) -> float:
    """Their sum."""
    return sum(values(rows, key))


def first_quarter(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The first quarter of the rows, at least one."""
    return tuple(rows[: max(1, len(rows) // 4)])


def last_quarter(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The last quarter of the rows, at least one."""
    return tuple(rows[-max(1, len(rows) // 4) :])


def span(rows: Sequence[Row]) -> str:
    """The steps of rows, as people write them."""
    first, last = rows[0].get("step"), rows[-1].get("step")
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _lines(file: Path) -> tuple[Row, ...]:
    rows = [parse_json(line, file, n) for n, line in enumerate(read_bytes(file).splitlines(), start=1)]
    if not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{file}: holds something other than objects")
    return tuple(rows)
