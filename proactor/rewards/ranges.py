"""The range of a reward's values, and values brought from it to the scale 0..1 on which rewards are mixed."""

from __future__ import annotations

import math

from proactor.rewards.errors import RewardError
from proactor.rewards.weighted_metric import WeightedMetric

Range = tuple[float, float]
"""The least and the greatest value of a reward."""

UNIT: Range = (0.0, 1.0)


def timing_range(metric: WeightedMetric) -> Range:
    """The range of T_u."""
    early = 0.0 if metric.early == "linear" else float(metric.early)
    return min(0.0, early, metric.pending), max(1.0, early, metric.pending)


def metric_range(metric: WeightedMetric) -> Range:
    """The range of the weighted metric."""
    timing = timing_range(metric)
    ends = [(0.0, metric.consistency), tuple(metric.timing * t for t in timing), (0.0, -metric.false)]
    return sum(min(e) for e in ends), sum(max(e) for e in ends)


def to_unit(name: str, value: float, bounds: Range) -> float:
    """``value`` of the reward ``name`` on the scale 0..1 of ``bounds``.

    Raises RewardError where it lies outside by more than rounding.
    """
    low, high = bounds
    share = (value - low) / (high - low)
    if not math.isfinite(share) or not -1e-6 <= share <= 1 + 1e-6:
        raise RewardError(
            f"reward {name!r} gave {value!r}, outside its range {low:g} to {high:g}: "
            "declare range: [low, high]"
        )
    return min(1.0, max(0.0, share))
