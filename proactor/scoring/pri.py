"""PRI: harmonic mean of a consistency index CI and a timing index TI, absolute or relative to systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from proactor.scoring.arrays import Array, ratio


def harmonic(a: Array, b: Array) -> Array:
    """Harmonic mean, 0 where either is 0."""
    return ratio(2 * a * b, a + b)


def absolute_pri(
    ac: Array, max_ac: Array, difference: Array, pt: Array, ftr: Array, rar: Array
) -> tuple[Array, Array, Array]:
    """(CI, TI, PRI): ``CI = mean(AC, MaxAC, 1/(1+Diff))``, ``TI = mean(PT, 1-FTR, RAR)``,
    ``PRI = 2 CI TI/(CI+TI)`` [INFERRED; NOTES: PRI is a harmonic mean of the two]. For an undefined
    Difference (NaN), 1/(1+Diff) is 0.
    """
    agreement = np.where(np.isnan(difference), 0.0, 1.0 / (1.0 + np.nan_to_num(difference)))
    ci = (ac + max_ac + agreement) / 3
    ti = (pt + 1 - ftr + rar) / 3
    return ci, ti, harmonic(ci, ti)


def relative_pri(systems: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """ci, ti, pri by min-max over the systems compared [DERIVED that PRI is relative; composition INFERRED].

    ``CI = mean(mm(AC), mm(MaxAC), 1-mm(Diff))``, ``TI = mean(mm(PT), 1-mm(FTR), mm(RAR))``; a constant column
    gives 0.5. An undefined Difference gets the worst value and does not stretch the range.
    """
    columns = {
        key: [row[key] for row in systems.values()]
        for key in ("ac", "max_ac", "difference", "pt", "ftr", "rar")
    }
    mm = {key: _min_max(column) for key, column in columns.items()}
    result: dict[str, dict[str, float]] = {}
    for i, name in enumerate(systems):
        ci = (mm["ac"][i] + mm["max_ac"][i] + 1 - mm["difference"][i]) / 3
        ti = (mm["pt"][i] + 1 - mm["ftr"][i] + mm["rar"][i]) / 3
        result[name] = {
            "ci": float(ci),
            "ti": float(ti),
            "pri": float(harmonic(np.asarray(ci), np.asarray(ti))),
        }
    return result


def _min_max(column: Sequence[float | None]) -> Array:
    """Scaled to 0..1; None becomes 1 (only Difference can be None, where 1 is the worst)."""
    known = [x for x in column if x is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def scale(x: float | None) -> float:
        if x is None:
            return 1.0
        return 0.5 if high == low else (x - low) / (high - low)

    return np.array([scale(x) for x in column])
