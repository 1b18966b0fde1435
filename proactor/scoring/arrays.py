"""Float arrays of sums and metrics."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def ratio(numerator: Array, denominator: Array, empty: float = 0.0) -> Array:
    """Elementwise quotient as float64, ``empty`` where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def mean_defined(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are defined (not None), None where none is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
