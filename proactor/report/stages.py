"""What the reward was made of at each stage of training: the rows of metrics.jsonl, in thirds.

"Stage" is a stage of training, not of a dialogue [NOTES, methods 1.6]: exploration early, balance in the
middle, conservative late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

STAGES = ("first third", "second third", "last third")


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the reward: its mean in each stage, its mean deviation inside a group (the only spread that
    gives gradient), and its coefficient where the reward has one under the same name. None: not in those
    rows.
    """

    name: str
    means: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    coefficients: tuple[float | None, ...]


def components(history: Sequence[Mapping[str, Any]]) -> list[Component]:
    """Parts and coefficients of the reward by stage, from the GRPO rows of ``history``; fewer than three such
    rows have no stages.
    """
    rows = [row for row in history if row.get("kind") == "grpo"]
    if len(rows) < len(STAGES):
        return []
    parts = [rows[i * len(rows) // 3 : (i + 1) * len(rows) // 3] for i in range(len(STAGES))]

    def by_stage(key: str) -> tuple[float | None, ...]:
        found = [[float(r[key]) for r in part if isinstance(r.get(key), int | float)] for part in parts]
        return tuple(fmean(values) if values else None for values in found)

    keys = {key for row in rows for key in row}
    names = {
        k.removeprefix("parts/")
        for k in keys
        if k.startswith("parts/") and not k.endswith(("_std", "_within"))
    }
    names |= {k.removeprefix("coef/") for k in keys if k.startswith("coef/")}
    return [
        Component(name, by_stage(f"parts/{name}"), by_stage(f"parts/{name}_within"), by_stage(f"coef/{name}"))
        for name in sorted(names, key=lambda n: (n != "reward", n))
    ]
