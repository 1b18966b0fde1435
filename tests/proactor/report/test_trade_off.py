"""The trade-off chart: a scale that is announced, round ticks, and labels that do not collide."""

from __future__ import annotations

import re
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from proactor.report.labels import HEIGHT, Box, place_labels
from proactor.report.trade_off import APART, draw, x_ticks

FIELD = Box(64.0, 14.0, 606.0, 252.0)
NAMES = ("human", "always", "never", "values seen", "greedy", "common threshold", "threshold per tool")


@given(st.lists(st.tuples(st.floats(64, 606), st.floats(14, 252)), min_size=len(NAMES), max_size=len(NAMES)))
def test_labels_never_collide_and_stay_inside(places: list[tuple[float, float]]) -> None:
    labels = place_labels([(x, y, name) for (x, y), name in zip(places, NAMES, strict=True)], FIELD)
    assert sorted(name for label in labels for name in label.text.split(", ")) == sorted(NAMES)
    for one, other in combinations(labels, 2):
        assert not one.box.overlaps(other.box)
    for label in labels:
        assert FIELD.left <= label.box.left < label.box.right <= FIELD.right + 1e-6
        assert FIELD.top <= label.box.top < label.box.bottom <= FIELD.bottom


def test_points_at_one_place_share_a_label_and_near_ones_make_room() -> None:
    together = place_labels([(100, 100, "never"), (100, 100, "human")], FIELD)
    assert [label.text for label in together] == ["never, human"]
    near = place_labels([(100, 100, "never"), (103, 102, "human")], FIELD)
    assert len(near) == 2 and not near[0].box.overlaps(near[1].box)


def test_a_crowd_of_points_is_told_apart_by_lines() -> None:
    labels = place_labels([(300 + i, 120 + i, f"{i} {name}") for i, name in enumerate(2 * NAMES)], FIELD)
    assert any(label.moved for label in labels)
    for label in labels:
        away = abs((label.box.top + label.box.bottom) / 2 - label.point[1])
        assert label.moved or away <= 2 * HEIGHT


def test_the_chart_names_its_axes_and_its_scale() -> None:
    dots = {"never": (0.0, 0.0), "human": (0.0, 0.0), "always": (238.0, 60.0)}
    svg = draw({"common": [(0.0, 0.0), (15.0, 20.0), (59.0, 40.0)]}, dots, 1.0, {"common": (0.0, 0.0)})
    assert "wrong fires in 100 dialogues (square-root scale)</text>" in svg
    assert "turns saved in 100 dialogues</text>" in svg
    names = re.findall(r'<text class="name"[^>]*>([^<]*)<', svg)
    assert sorted(names) == ["always", "common, never, human"]


@given(st.floats(0.5, 1e5), st.sampled_from([0.0, 0.5, 1.0, 3.0, 25.0]))
def test_ticks_are_round_and_far_enough_apart(most: float, budget: float) -> None:
    most = max(most, budget * 4)
    ticks = x_ticks(most, budget)
    assert 0.0 in ticks and budget in ticks and max(ticks) <= most
    rounds = [tick for tick in ticks if tick not in (0.0, budget)]
    assert all(f"{tick:.0e}"[0] in "125" and float(f"{tick:.0e}") == tick for tick in rounds)
    places = [tick**0.5 / most**0.5 * 542 for tick in ticks if tick != budget]
    assert all(b - a >= APART - 1e-6 for a, b in pairwise(places))
