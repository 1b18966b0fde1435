"""What a run's last stage achieved on its own measure: the chosen step, its value and that of the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from proactor.tables import plain_name

MANY_FLAT = 0.8
"""Share of groups without spread from which on it is named as the reason for a stage that learned nothing
[INFERRED].
"""

STAGE_B = ("grpo", "sand")
"""Phases that are judged by playing or scoring on dev; "sft" by its held-out loss."""


class Outcome(BaseModel):
    """``phase``: "sft" or one of `STAGE_B`. ``measure``: the metric on dev, or ``held_out_loss``.

    ``best_step`` counts within the phase (0: its start was never beaten), out of ``steps`` that were run.
    ``start``, ``best``, ``end``: the measure at the first, best and last check; None where it was not finite.
    ``without_spread``: mean share of groups whose answers all earned the same; None for "sft".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    measure: str
    best_step: int
    steps: int
    start: float | None
    best: float | None
    end: float | None
    without_spread: float | None = None

    @property
    def title(self) -> str:
        """The chosen step in a few words, for the title of a table."""
        name = self.phase.upper()
        if self.best_step == 0:
            return f"after: the start, {name} never beat it (best step 0)"
        return f"after: {name} step {self.best_step} of {self.steps}"

    def __str__(self) -> str:
        """The chosen step, or, where the start was the best, that fact and its reason."""
        name = self.phase.upper()
        measure = f"{plain_name(self.measure)} on dev"
        if self.best_step > 0:
            return (
                f"best adapter: {name} step {self.best_step} of {self.steps}, "
                f"{measure} {_format(self.start)} -> {_format(self.best)}"
            )
        line = (
            f"{name} never beat its start (best step 0): {measure} {_format(self.start)} at the start, "
            f"{_format(self.end)} after {self.steps} steps"
        )
        if self.without_spread is not None:
            line += f"; {self.without_spread:.0%} of the groups without spread"
            if self.without_spread >= MANY_FLAT:
                line += ", which give no gradient (a higher temperature or sampling.n helps)"
        return line


def outcome(rows: Sequence[Mapping[str, Any]], metric: str) -> Outcome | None:
    """The outcome of the last stage in the ``rows`` of a `metrics.jsonl`; None without a check.

    ``metric``: `eval.metric`, by which GRPO's best adapter is chosen.
    """
    phase = next((name for name in STAGE_B if any(row["phase"] == name for row in rows)), "sft")
    measure, sign = (metric, 1.0) if phase in STAGE_B else ("held_out_loss", -1.0)
    key = f"eval_{metric}" if phase in STAGE_B else measure
    steps, best_step, best = 0, 0, float("-inf")
    checks: list[float | None] = []
    flat: list[float] = []
    for row in rows:
        if row["phase"] != phase:
            continue
        if row["kind"] == phase:
            steps += 1
            if row.get("zero_spread_share") is not None:
                flat.append(row["zero_spread_share"])
        elif key in row:
            value = row[key]
            # an undefined metric counts as 0 when the best is chosen, a loss that is not finite as the worst
            score = sign * value if value is not None else (0.0 if phase in STAGE_B else float("-inf"))
            if not checks or score > best:
                best, best_step = score, steps
            checks.append(value)
    if not checks:
        return None
    return Outcome(
        phase=phase,
        measure=measure,
        best_step=best_step,
        steps=steps,
        start=checks[0],
        best=None if best == float("-inf") else sign * best,
        end=checks[-1],
        without_spread=sum(flat) / len(flat) if flat else None,
    )


def chosen_row(rows: Sequence[Mapping[str, Any]], chosen: Outcome) -> int | None:
    """The index in ``rows`` of the check that chose the step; None where they do not hold it."""
    steps, key = 0, f"eval_{chosen.measure}" if chosen.phase in STAGE_B else chosen.measure
    for i, row in enumerate(rows):
        if row.get("phase") != chosen.phase:
            continue
        if row.get("kind") == chosen.phase:
            steps += 1
        elif key in row and steps == chosen.best_step:
            return i
    return None


def _format(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
