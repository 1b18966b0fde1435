"""The parts of the reward at each stage of training: the rows of metrics.jsonl, in thirds.

A stage is one of training, not of a dialogue [NOTES, methods 1.6]: exploring, balanced, then conservative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

STAGES = ("first third", "second third", "last third")


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One part of the reward, by stage; None where no row has it.

    ``spreads``: mean deviation inside a group, the only spread that gives gradient. ``coefficients``: of the
    reward, where it has one of the same name.
    """

    name: str
    means: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    coefficients: tuple[float | None, ...]


def reward_parts(history: Sequence[Mapping[str, Any]]) -> list[RewardPart]:
    """The parts of the reward, from the GRPO rows of ``history``; none for fewer than three such rows."""
    rows = [row for row in history if row.get("kind") == "grpo"]
    if len(rows) < len(STAGES):
        return []
    thirds = [rows[i * len(rows) // 3 : (i + 1) * len(rows) // 3] for i in range(len(STAGES))]

    def by_stage(key: str) -> tuple[float | None, ...]:
        values = [[float(r[key]) for r in third if isinstance(r.get(key), int | float)] for third in thirds]
        return tuple(fmean(column) if column else None for column in values)

    keys = {key for row in rows for key in row}
    names = {
        k.removeprefix("parts/")
        for k in keys
        if k.startswith("parts/") and not k.endswith(("_std", "_within"))
    }
    names |= {k.removeprefix("coef/") for k in keys if k.startswith("coef/")}
    return [
        RewardPart(
            name, by_stage(f"parts/{name}"), by_stage(f"parts/{name}_within"), by_stage(f"coef/{name}")
        )
        for name in sorted(names, key=lambda n: (n != "reward", n))
    ]
