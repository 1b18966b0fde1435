"""Windows against windows."""

from __future__ import annotations

import pytest

from proactor.annotation import WindowAgreement, compare_windows
from proactor.annotation.window_agreement import iou
from proactor.dialogue import Reference

POINTS = (1, 3, 5, 7, 9)


def ref(
    name: str, coverage: tuple[int, int], ready: tuple[int, int] | None, id: str = "r", **params: str
) -> Reference:
    return Reference(id=id, name=name, params=params, coverage=coverage, ready=ready)


def test_iou_counts_decision_turns_only() -> None:
    assert iou((1, 5), (3, 9), POINTS) == 2 / 5
    assert (
        iou((1, 6), (1, 5), POINTS) == 1 and iou(None, (1, 1), POINTS) == 0 and iou(None, None, POINTS) == 1
    )


def test_pairs_by_values_then_by_time_and_those_without_a_partner_count_as_wrong() -> None:
    known = [
        ref("book", (1, 5), (3, 5), "a", day="mon"),
        ref("book", (5, 9), (9, 9), "b", day="tue"),
        ref("note", (1, 9), None, "c"),
    ]
    proposed = [
        ref("book", (5, 9), (9, 9), day="tue"),
        ref("book", (1, 3), (3, 3), day="mon"),
        ref("ring", (1, 1), (1, 1)),
    ]
    total = compare_windows(proposed, known, POINTS)
    assert total.references == 4 and total.judged == 3 and total.exact == 1
    assert total.ready == 1 + 0.5 and total.coverage == pytest.approx(1 + 2 / 3)
    means = total.means()
    assert means["ready_iou"] == 0.5 and means["exact"] == 0.25
    assert WindowAgreement().means()["ready_iou"] is None


def test_a_window_that_the_known_side_does_not_know_is_not_judged() -> None:
    assert compare_windows([ref("note", (1, 9), (3, 3))], [ref("note", (1, 9), None)], POINTS).judged == 0
    missed = compare_windows([ref("note", (1, 9), None)], [ref("note", (1, 9), (3, 3))], POINTS)
    assert (missed.judged, missed.ready) == (1, 0.0)
