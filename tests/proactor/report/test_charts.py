"""Small charts: marks that stand side by side stay on the chart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proactor.report.charts import side_by_side


def test_marks_at_the_end_stand_before_it() -> None:
    assert side_by_side([174.0, 174.0, 174.0], gap=7, end=174) == [160, 167, 174]
    assert side_by_side([6.0, 100.0, 174.0], gap=7, end=174) == [6, 100, 174]
    assert side_by_side([], gap=7, end=174) == []


@given(st.lists(st.floats(6, 174), max_size=10))
def test_no_two_marks_touch(places: list[float]) -> None:
    moved = side_by_side(sorted(places), gap=7, end=174)
    assert all(right - left >= 7 - 1e-9 for left, right in pairwise(moved))
    assert all(at <= 174 for at in moved)
