"""Whether sampler and trainer move apart in the course of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proactor.engine import LARGE_GAP

STEPS = 10
"""Steps of which the mean gap is taken, at the run's beginning and at its end [INFERRED]."""
GROWN = 2.0
"""Times as large the later mean gap is, from which on it is named [INFERRED]."""


def gaps_of(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """The gaps of steps that compared tokens, in nats a token."""
    return [
        float(row["sampler_trainer_gap"])
        for row in rows
        if row.get("tokens_trained") and row.get("sampler_trainer_gap") is not None
    ]


def growth(gaps: list[float]) -> tuple[float, float] | None:
    """(mean gap of the first `STEPS` steps, of the last) where the last is above `LARGE_GAP` and above
    `GROWN` times the first; None where it is not, and for fewer than twice so many steps.
    """
    if len(gaps) < 2 * STEPS:
        return None
    first, last = sum(gaps[:STEPS]) / STEPS, sum(gaps[-STEPS:]) / STEPS
    return (first, last) if last > max(LARGE_GAP, GROWN * first) else None


class GapWatch:
    """Says once that the gap has grown. ``rows``: those of the steps until now."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._gaps = gaps_of(rows)
        self._said = growth(self._gaps) is not None

    def note(self, row: Mapping[str, Any]) -> str:
        """Take a step's row; the warning, or nothing."""
        self._gaps += gaps_of([row])
        if self._said or (grown := growth(self._gaps)) is None:
            return ""
        self._said = True
        return (
            f"warning: the sampler-trainer gap grew from {grown[0]:.3f} to {grown[1]:.3f} nats a token "
            f"(first and last {STEPS} steps): what is trained is less and less what is sampled"
        )
