"""Bootstrap intervals over dialogues: turns of one dialogue are dependent, so whole dialogues are resampled.

A corpus metric is recomputed from the resampled sums (`metrics.FIELDS`), never averaged over dialogues.
Percentile intervals [INFERRED: the methods name a bootstrap by dialogue, not its kind].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from proactor.engine import ProactorError
from proactor.scoring.arrays import Array, ratio
from proactor.scoring.metrics import FIELDS, Contribution, matrix, metrics_of

KEYS = (
    "reward",
    "values_right",
    "first_fire_f1",
    "on_time_f1",
    "recall",
    "precision",
    "turns_saved",
    "false_per_100",
    "similarity_first_fire_f1",
    "pri",
    "ac",
    "pt",
    "ftr",
    "rar",
)
"""The metrics of a summary."""

LOWER_IS_BETTER = ("false_per_100", "ftr")
"""Those of `KEYS` of which less is better: wrong fires, of which an agent that never acts has none."""


@dataclass(frozen=True, slots=True)
class Interval:
    """``estimate`` on the data, percentile bounds ``low``, ``high`` of the resamples, at ``level``."""

    estimate: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def intervals(
    contributions: Sequence[Contribution],
    keys: Sequence[str] = KEYS,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Interval of each metric in ``keys`` for one system. Raises ProactorError without dialogues."""
    if not contributions:
        raise ProactorError("bootstrap: no dialogues")
    return bootstrap_sums(
        matrix(contributions), metrics_of, keys, resamples=resamples, level=level, seed=seed
    )


def bootstrap_sums(
    rows: Array,
    statistics: Callable[[Array], Mapping[str, Array]],
    keys: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of any statistics of sums: ``rows`` [dialogues, F], one row per dialogue; ``statistics`` maps
    sums [..., F] to named [...]. The draws depend only on the number of rows and the seed.

    Of ``rows`` [runs, tasks, F] runs and tasks are each drawn by themselves, and crossed.
    """
    generator = np.random.default_rng(seed)
    sums = _weights(rows.shape[-2], resamples, generator) @ rows  # [..., resamples, F]
    if rows.ndim == 3:
        sums = np.einsum("ra,arf->rf", _weights(len(rows), resamples, generator), sums)
    drawn, exact = statistics(sums), statistics(rows.sum(axis=tuple(range(rows.ndim - 1))))
    return {key: _interval(float(exact[key]), drawn[key], level) for key in keys}


def paired_difference(
    before: Sequence[Sequence[Contribution]],
    after: Sequence[Sequence[Contribution]],
    keys: Sequence[str] = KEYS,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Interval of ``after - before`` of each metric, paired by dialogue and pooled over seeds.

    One inner list per seed; before[i] and after[i] must hold the same dialogues, else ProactorError is
    raised. A resample uses one draw of dialogues for both systems and every seed, so that the runs of a
    dialogue stay together. The difference of corpus metrics is averaged over seeds, which are not resampled;
    a seed where it is undefined is left out.
    """
    if not before or len(before) != len(after):
        raise ProactorError(f"bootstrap: {len(before)} seeds before, {len(after)} after")
    ids = sorted({c.dialogue for run in (*before, *after) for c in run})
    if not ids:
        raise ProactorError("bootstrap: no dialogues")
    weights = _weights(len(ids), resamples, seed)
    drawn: dict[str, list[Array]] = {key: [] for key in keys}
    exact: dict[str, list[float]] = {key: [] for key in keys}
    for old, new in zip(before, after):
        _check_paired(old, new)
        a, b = _align_rows(old, ids), _align_rows(new, ids)
        old_drawn, new_drawn = metrics_of(weights @ a), metrics_of(weights @ b)
        old_exact, new_exact = metrics_of(a.sum(axis=0)), metrics_of(b.sum(axis=0))
        for key in keys:
            drawn[key].append(new_drawn[key] - old_drawn[key])
            exact[key].append(float(new_exact[key] - old_exact[key]))
    return {
        key: _interval(
            float(_mean_over_seeds(np.array(exact[key]))), _mean_over_seeds(np.array(drawn[key])), level
        )
        for key in keys
    }


def _mean_over_seeds(values: Array) -> Array:
    """[seeds, ...] -> [...]: the mean of the values that are no NaN; NaN where none is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0), np.nan)


def _check_paired(before: Sequence[Contribution], after: Sequence[Contribution]) -> None:
    old, new = [c.dialogue for c in before], [c.dialogue for c in after]
    for ids in (old, new):
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ProactorError(f"bootstrap: dialogue {twice!r} appears twice in one run")
    if unpaired := set(old) ^ set(new):
        raise ProactorError(f"bootstrap: dialogue {min(unpaired)!r} was scored before or after, not both")


def _align_rows(contributions: Sequence[Contribution], ids: Sequence[str]) -> Array:
    """[len(ids), len(FIELDS)]: the sums of each dialogue in the order of ``ids``, 0 for absent ones."""
    place = {name: i for i, name in enumerate(ids)}
    rows = np.zeros((len(ids), len(FIELDS)))
    rows[[place[c.dialogue] for c in contributions]] = matrix(contributions)
    return rows


def _weights(dialogues: int, resamples: int, seed: int | np.random.Generator) -> Array:
    """[resamples, dialogues] float64: how often each dialogue was drawn."""
    shares = np.full(dialogues, 1 / dialogues)
    draws = np.random.default_rng(seed).multinomial(dialogues, shares, size=resamples)
    return draws.astype(np.float64)


def _interval(estimate: float, drawn: Array, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = math.nan, math.nan
    if not np.isnan(drawn).all():
        low, high = map(float, np.nanquantile(drawn, [tail, 1 - tail]))
    # math.nan is one object: intervals that are undefined alike compare equal
    return Interval(math.nan if math.isnan(estimate) else estimate, low, high, level)
