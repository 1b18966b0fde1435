"""A dialogue by turns beside one pass: gradients that differ are not recorded."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest

from bench.turns import TOLERANCE, compare

SHAPE = argparse.Namespace(turns=1, samples=1, tokens=1, context=1, layers=1, hidden=1)


def sides(other: list[float]) -> dict[str, dict[str, Any]]:
    return {
        name: {"gradient": gradient, "seconds": 2.0, "peak": 8, "rows": 3}
        for name, gradient in (("one pass", [1.0, -4.0]), ("by turns", other))
    }


def test_a_side_is_compared_with_one_pass() -> None:
    found = compare(SHAPE, sides([1.0, -4.0 * (1 + TOLERANCE / 2)]))["sides"]["by turns"]
    assert 0 < found["gradient_error"] < TOLERANCE and found["time"] == found["memory"] == 1


@pytest.mark.parametrize("wrong", [-4.01, math.nan])
def test_another_gradient_is_refused(wrong: float) -> None:
    with pytest.raises(SystemExit, match="by turns: its gradient is off"):
        compare(SHAPE, sides([1.0, wrong]))
