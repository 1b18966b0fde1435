"""Marks of turns become windows: linking, gaps, order of statuses, assent, values; and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.annotation import Mark, MergedMarks, marks_of, merge
from proactor.annotation.marks import NO_ASSENT
from proactor.dialogue import Reference
from proactor.sources import load
from tests.proactor.annotation.scripted import TOOLS, mark, talk
from tests.proactor.dialogues import users

LONG = talk(*(f"turn {i}" for i in range(1, 20)))


def windows(marks: Mapping[int, Sequence[Mark]], max_gap: int = 1) -> MergedMarks:
    return merge(LONG, marks, TOOLS, max_gap=max_gap)


def shape(merged: MergedMarks) -> list[tuple[str, object, object]]:
    return [(r.name, r.coverage, r.ready) for r in merged.references]


def test_coverage_is_all_listed_turns_and_ready_ends_before_triggered() -> None:
    marks = {
        1: [mark("note", "PENDING")],
        3: [mark("note", "READY", text="x")],
        5: [mark("note", "READY", text="x")],
        7: [mark("note", "TRIGGERED", text="x")],
    }
    assert shape(windows(marks)) == [("note", (1, 7), (3, 5))]


def test_a_gap_of_one_decision_turn_is_filled_and_a_longer_one_begins_another_action() -> None:
    one = windows({1: [mark("note", "READY", text="x")], 5: [mark("note", "READY", text="x")]})
    assert shape(one) == [("note", (1, 5), (1, 5))] and one.counters["gap_filled"] == 1
    two = windows({1: [mark("note", "READY", text="x")], 7: [mark("note", "READY", text="x")]})
    assert (
        shape(two) == [("note", (1, 1), (1, 1)), ("note", (7, 7), (7, 7))] and two.counters["reopened"] == 1
    )
    assert len(windows({1: [mark("note", "READY")], 5: [mark("note", "READY")]}, max_gap=0).references) == 2


def test_other_values_are_another_action_and_values_add_up() -> None:
    merged = windows(
        {
            1: [mark("note", "PENDING", text="x"), mark("note", "PENDING", text="y")],
            3: [mark("note", "READY", text="Y", kind="big"), mark("note", "PENDING", text="x.")],
            5: [mark("note", "READY", text="x")],
        }
    )
    assert [(r.params, r.coverage, r.ready) for r in merged.references] == [
        ({"text": "x"}, (1, 5), (5, 5)),
        ({"text": "y", "kind": "big"}, (1, 3), (3, 3)),
    ]


def test_a_value_that_comes_after_the_window_opened_is_left_out_and_counted() -> None:
    merged = windows({1: [mark("note", "READY", text="x")], 3: [mark("note", "READY", text="x", kind="big")]})
    assert merged.references[0].params == {"text": "x"} and merged.counters["value_after_ready"] == 1


def call(trigger: int | None, **params: str) -> Reference:
    return Reference(id=f"c{trigger}", name="note", params=params, observed_trigger=trigger)


def after_call(*log: Reference, **marks: Mark) -> list[tuple[object, object]]:
    """Coverage and window of what is READY with the text x at turn 1, then as given (``t3``: at turn 3)."""
    listed = {1: [mark("note", "READY", text="x")]} | {int(t[1:]): [m] for t, m in marks.items()}
    merged = merge(LONG.model_copy(update={"references": log}), listed, TOOLS)
    assert not merged.broken
    return [(r.coverage, r.ready) for r in merged.references]


@pytest.mark.parametrize("again", ["PENDING", "READY"])
@pytest.mark.parametrize("gap", [0, 1])
def test_the_log_tells_one_call_from_the_next_that_shares_its_values(again: str, gap: int) -> None:
    at = {f"t{3 + 2 * gap}": mark("note", again, text="x"), "t7": mark("note", "READY", text="x", kind="big")}
    second = ((3 + 2 * gap, 7), (3 + 2 * gap if again == "READY" else 7, 7))
    first, next_one = call(1, text="X"), call(8, text="x", kind="big")
    assert after_call(first, next_one, **at) == [((1, 1), (1, 1)), second]
    assert after_call(next_one, first, **at) == [((1, 1), (1, 1)), second]
    assert after_call(first, call(None, text="x"), **at) == [((1, 1), (1, 1)), second]


def test_without_a_call_to_come_an_action_goes_on_after_it_was_run() -> None:
    for log in ((), (call(1, text="x"),), (call(1, text="x"), call(7, text="y"))):
        assert after_call(*log, t3=mark("note", "READY", text="x")) == [((1, 3), (1, 3))]
    two = call(1, text="x"), call(7, text="x")
    assert after_call(*two, t3=mark("note", "TRIGGERED", text="x")) == [((1, 3), (1, 1))]
    assert after_call(*two, t3=mark("note", "WITHDRAWN", text="x")) == [((1, 1), (1, 1))]
    overdue = {"t3": mark("note", "TRIGGERED", text="x"), "t5": mark("note", "PENDING", text="x")}
    assert after_call(*two, **overdue) == [((1, 3), (1, 1)), ((5, 5), None)]


def test_a_call_ends_the_action_of_its_values_only() -> None:
    both = [mark("note", "READY", text=text) for text in "xy"]
    dialogue = LONG.model_copy(update={"references": (call(1, text="x"), call(5, text="y"))})
    found = merge(dialogue, {1: both, 3: both[1:], 5: both[1:]}, TOOLS).references
    assert [(r.params["text"], r.coverage) for r in found] == [("x", (1, 1)), ("y", (1, 5))]
    vague = [mark("note", "READY", text="x", kind="big"), mark("note", "PENDING", text="x")]
    dialogue = LONG.model_copy(update={"references": (call(1, text="x", kind="big"), call(3, text="x"))})
    found = merge(dialogue, {1: vague, 3: [mark("note", "READY", text="x")]}, TOOLS).references
    assert [(r.params, r.coverage) for r in found] == [
        ({"text": "x", "kind": "big"}, (1, 1)),
        ({"text": "x"}, (1, 3)),
    ]


@pytest.mark.parametrize(
    "order", [("READY", "PENDING"), ("TRIGGERED", "READY"), ("PENDING", "TRIGGERED", "PENDING")]
)
def test_a_status_that_goes_back_drops_the_action_and_names_its_turns(order: tuple[str, ...]) -> None:
    merged = windows({2 * i + 1: [mark("note", status)] for i, status in enumerate(order)})
    assert merged.references == () and merged.counters["not_monotone"] == 1
    assert merged.broken == tuple(2 * i + 1 for i in range(len(order)))


def test_ready_before_the_assent_is_pending_where_the_turn_of_it_is_known() -> None:
    ready = mark("book", "READY", day="mon")
    told = windows({1: [ready], 3: [ready], 5: [ready.model_copy(update={"assent": 5})]})
    assert shape(told) == [("book", (1, 5), (5, 5))] and told.counters["ready_before_assent"] == 2
    never = windows({1: [ready.model_copy(update={"assent": NO_ASSENT})]})
    assert shape(never) == [("book", (1, 1), None)] and never.references[0].null_reason == "never_ready"
    unknown = windows({1: [ready]})
    assert shape(unknown) == [("book", (1, 1), (1, 1))] and unknown.counters["assent_unknown"] == 1
    free = windows({1: [mark("note", "READY", NO_ASSENT)]})
    assert shape(free) == [("note", (1, 1), (1, 1))], "a tool that does not ask needs no assent"


def test_what_is_taken_back_before_it_was_ready_is_withdrawn_and_after_it_keeps_its_window() -> None:
    before = windows(
        {1: [mark("note", "PENDING")], 3: [mark("note", "WITHDRAWN")], 5: [mark("note", "PENDING")]}
    )
    assert [(r.coverage, r.null_reason) for r in before.withdrawn] == [((1, 1), "withdrawn")]
    assert shape(before) == [("note", (5, 5), None)], "what comes after is another action"
    after = windows({1: [mark("note", "READY")], 3: [mark("note", "WITHDRAWN")]})
    assert shape(after) == [("note", (1, 1), (1, 1))] and not after.withdrawn
    assert windows({1: [mark("note", "WITHDRAWN")]}).counters["withdrawn_only"] == 1


def test_marks_of_known_windows_give_the_windows_back() -> None:
    corpus = load("synthetic", limit=300)
    for dialogue in corpus.dialogues:
        merged = merge(dialogue, marks_of(dialogue), corpus.catalog)
        key = lambda r: (r.coverage, r.name)  # noqa: E731
        for ours, known in (
            (merged.references, dialogue.references),
            (merged.withdrawn, dialogue.withdrawn),
        ):
            assert [(r.name, r.params, r.coverage, r.ready) for r in sorted(ours, key=key)] == [
                (r.name, r.params, r.coverage, r.ready) for r in sorted(known, key=key)
            ]


@st.composite
def reference(draw: st.DrawFn) -> Reference:
    opened, ready, due, closed = sorted(draw(st.lists(st.integers(1, 12), min_size=4, max_size=4)))
    known = draw(st.booleans())
    return Reference(
        id="r",
        name="note",
        params={"text": "x"},
        coverage=(opened, closed),
        ready=(ready, due) if known else None,
        value_turns={"text": opened},
    )


@given(reference())
@settings(max_examples=60, deadline=None)
def test_any_single_window_survives_marks_and_merge(known: Reference) -> None:
    dialogue = users(12, known)
    merged = merge(dialogue, marks_of(dialogue), TOOLS)
    assert shape(merged) == [("note", known.coverage, known.ready)] and not merged.broken


STATUS = st.sampled_from(["PENDING", "READY", "TRIGGERED", "WITHDRAWN"])
MARKS = st.dictionaries(
    st.integers(1, 12),
    st.lists(
        st.builds(
            mark,
            st.sampled_from(["note", "book"]),
            STATUS,
            st.sampled_from([None, 0, 3, 5]),
            text=st.sampled_from("xy"),
        ),
        max_size=3,
    ),
    max_size=12,
)


@given(MARKS)
@settings(max_examples=100, deadline=None)
def test_whatever_is_marked_gives_ordered_windows_inside_the_dialogue(marks: dict[int, list[Mark]]) -> None:
    dialogue = users(12)
    merged = merge(dialogue, marks, TOOLS)
    dialogue.model_copy(update={"references": merged.references}).model_validate(
        dialogue.model_dump() | {"references": merged.references, "withdrawn": merged.withdrawn}
    )
    listed = {turn for turn, said in marks.items() if said}
    for action in (*merged.references, *merged.withdrawn):
        assert action.coverage and set(action.coverage) <= listed
