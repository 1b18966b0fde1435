"""Similarity and timing classes, with the masks."""

from __future__ import annotations

import itertools

import pytest

from proactor.dialogue import Action, Reference
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.matching import (
    EXACT,
    MatchRule,
    Timing,
    classify,
    exact_rule,
    first_fires,
    similarity,
    timing_at,
)
from tests.proactor.annotation.scripted import talk
from tests.proactor.dialogues import pending, ready, users

BOOK = Reference(id="b", name="book", params={"day": "Monday", "time": "9"}, coverage=(2, 6), ready=(4, 5))


def timings(*args: object, **kwargs: object) -> list[Timing | None]:
    return [j.timing for j in classify(*args, **kwargs)]  # type: ignore[arg-type]


def test_similarity_is_the_share_of_equal_values_over_the_union_of_keys() -> None:
    assert similarity(ready("book", day="monday", time="9"), BOOK) == 1.0
    assert similarity(ready("book", day="Monday"), BOOK) == 0.5
    assert similarity(ready("book", day="Monday", time="9", place="here"), BOOK) == pytest.approx(2 / 3)
    assert similarity(ready("call", day="Monday", time="9"), BOOK) == 0.0
    assert similarity(ready("list"), Reference(id="l", name="list")) == 1.0
    assert similarity(ready("list", a="1"), Reference(id="l", name="list")) == 0.0
    spelled = BOOK.model_copy(update={"variants": {"time": ("nine",)}})
    assert similarity(ready("book", time="Nine"), spelled) == 0.5


def test_timing_classes_at_every_turn() -> None:
    classes = [timing_at(BOOK, u) for u in range(1, 8)]
    assert classes == ["false", "early", "early", "on_time", "on_time", "late", "false"]
    for turn, expected in enumerate(classes, start=1):
        assert timings(users(7, BOOK), turn, [ready("book", day="Monday")]) == [expected]


def test_theta_parts_a_match_from_a_false_fire() -> None:
    dialogue = users(7, BOOK)
    assert timings(dialogue, 4, [ready("book", day="Monday")]) == [Timing.ON_TIME]
    assert timings(dialogue, 4, [ready("book", day="Monday")], rule=MatchRule(0.6)) == [Timing.FALSE]
    assert timings(dialogue, 4, [ready("book")], rule=MatchRule(0.0)) == [Timing.FALSE]


def test_pending_has_no_timing_but_a_similarity() -> None:
    (action,) = classify(users(7, BOOK), 2, [pending("book", day="Monday")])
    assert (action.timing, action.similarity, action.reference) == (None, 0.5, BOOK)


def test_repeats_are_false_and_masked_after_an_early_fire() -> None:
    dialogue, fire = users(7, BOOK), [ready("book", day="Monday", time="9")]
    assert timings(dialogue, 5, fire, fired={"b": Timing.ON_TIME}) == [Timing.REPEAT]
    assert timings(dialogue, 7, fire, fired={"b": Timing.ON_TIME}) == [Timing.FALSE]
    assert timings(dialogue, 5, fire, fired={"b": Timing.EARLY}) == [Timing.AFTER_EARLY]
    assert timings(dialogue, 7, fire, fired={"b": Timing.EARLY}) == [Timing.AFTER_EARLY]
    assert timings(dialogue, 5, fire, fired=None) == [Timing.ON_TIME]


def test_two_fires_in_one_turn_use_a_reference_once_whatever_the_order() -> None:
    right, half = ready("book", day="Monday", time="9"), ready("book", day="Monday")
    for order in itertools.permutations([right, half]):
        by_time = {
            j.action.params.get("time"): j.timing for j in classify(users(7, BOOK), 4, order, fired={})
        }
        assert by_time == {"9": Timing.ON_TIME, None: Timing.REPEAT}
    assert timings(users(7, BOOK), 4, [right, half]) == [Timing.ON_TIME] * 2


def test_the_same_action_twice_in_a_dialogue_matches_the_unfired_one() -> None:
    again = BOOK.model_copy(update={"id": "c"})
    (action,) = classify(
        users(7, BOOK, again), 4, [ready("book", day="Monday", time="9")], fired={"b": Timing.ON_TIME}
    )
    assert (action.timing, action.reference) == (Timing.ON_TIME, again)


def test_a_nearer_fired_reference_is_not_traded_for_a_farther_unfired_one() -> None:
    other = BOOK.model_copy(update={"id": "c", "params": {"day": "Monday", "time": "10"}})
    assert timings(
        users(7, other, BOOK), 4, [ready("book", day="Monday", time="9")], fired={"b": Timing.ON_TIME}
    ) == ["repeat"]


def test_unknown_windows_are_masked_unless_a_known_one_is_nearer() -> None:
    unknown = Reference(id="u", name="book", params={"day": "Tuesday", "time": "9"})
    alone, both = users(7, unknown), users(7, unknown, BOOK)
    for action in (ready("book", day="Tuesday", time="9"), pending("book"), ready("book")):
        assert timings(alone, 4, [action]) == [Timing.UNKNOWN]
    assert timings(both, 4, [ready("book", day="Tuesday", time="9")]) == [Timing.UNKNOWN]
    assert timings(both, 4, [ready("book", day="Monday", time="9")]) == [Timing.ON_TIME]
    assert timings(both, 1, [ready("book", day="Monday", time="9")]) == [Timing.FALSE]
    assert timings(alone, 4, [ready("call")]) == [Timing.FALSE]


def test_an_action_as_near_to_an_unknown_window_goes_by_the_turn() -> None:
    known = BOOK.model_copy(update={"coverage": (1, 2), "ready": (1, 2)})
    unknown = BOOK.model_copy(update={"id": "u", "coverage": (4, 6), "ready": None})
    fire, part = ready("book", day="Monday", time="9"), ready("book", day="Monday")
    for rule in (MatchRule(), EXACT):
        at = [timings(users(7, known, unknown), turn, [fire], rule=rule)[0] for turn in range(1, 8)]
        masked = [Timing.UNKNOWN] * 3
        assert at == [Timing.ON_TIME, Timing.ON_TIME, Timing.FALSE, *masked, Timing.FALSE]
    assert timings(users(7, known, unknown), 4, [part, pending("book", day="Monday")]) == [Timing.UNKNOWN]
    after = {"b": Timing.ON_TIME}
    assert timings(users(7, known, unknown), 4, [fire], fired=after) == [Timing.UNKNOWN], "another call of it"
    logged = unknown.model_copy(update={"coverage": None, "observed_trigger": 5})
    at = [timings(users(7, known, logged), turn, [fire])[0] for turn in (4, 5)]
    assert at == [Timing.FALSE, Timing.UNKNOWN]
    spoken = talk(*"abcdefg", references=(known, logged.model_copy(update={"observed_trigger": 6})))
    assert [timings(spoken, turn, [fire])[0] for turn in (3, 5)] == [Timing.FALSE, Timing.UNKNOWN], "at 6"
    open_too = BOOK.model_copy(update={"coverage": (1, 5), "ready": (1, 4)})
    at = [timings(users(7, open_too, unknown), turn, [fire])[0] for turn in (4, 5, 6)]
    assert at == [Timing.ON_TIME, Timing.LATE, Timing.UNKNOWN], "the known one, while it is open"
    farther = BOOK.model_copy(update={"id": "f", "params": {"day": "Monday", "time": "10"}})
    assert timings(users(7, known, unknown, farther), 4, [fire]) == [Timing.UNKNOWN]


def test_a_withdrawn_action_may_be_pending_but_not_fire() -> None:
    withdrawn = Reference(id="w", name="book", params={"day": "Monday"}, coverage=(1, 3))
    dialogue = users(7, withdrawn=(withdrawn,))

    def at(turn: int, action: Action) -> tuple[float, Timing | None]:
        (classified,) = classify(dialogue, turn, [action])
        return classified.similarity, classified.timing

    assert at(2, pending("book", day="Monday")) == (1.0, None)
    assert at(4, pending("book", day="Monday")) == (0.0, None)
    assert at(2, ready("book", day="Monday")) == (0.0, Timing.FALSE)


CATALOG = Catalog(
    tools=(
        Tool(
            name="book",
            parameters=(
                Parameter(name="day"),
                Parameter(name="time"),
                Parameter(name="note", required=False),
            ),
        ),
        Tool(name="list", parameters=(Parameter(name="page", required=False),)),
    )
)


def test_the_exact_rule_asks_for_every_required_value() -> None:
    rule = exact_rule(CATALOG)
    assert rule.accepts(ready("book", day="monday.", time="9"), BOOK)
    assert rule.accepts(ready("book", day="Monday", time="9", note="window seat"), BOOK)
    for wrong in (
        ready("book", day="Monday"),
        ready("book", day="Monday", time="10"),
        ready("call", day="Monday"),
    ):
        assert not rule.accepts(wrong, BOOK)
    noted = BOOK.model_copy(update={"params": BOOK.params | {"note": "aisle"}})
    assert rule.accepts(ready("book", day="Monday", time="9", note="window seat"), noted)
    assert not exact_rule(CATALOG, optional=True).accepts(ready("book", day="Monday", time="9"), noted)
    assert exact_rule(CATALOG, optional=True).accepts(
        ready("book", day="Monday", time="9", note="aisle"), noted
    )
    spelled = BOOK.model_copy(update={"variants": {"time": ("nine",)}})
    assert rule.accepts(ready("book", day="Monday", time="Nine"), spelled)
    # A tool that requires nothing: the name alone is not enough, all values of the reference are required.
    paged = Reference(id="l", name="list", params={"page": "2"}, coverage=(1, 3), ready=(1, 3))
    fires = [ready("list", page="2"), ready("list", page="3"), ready("list")]
    assert [rule.accepts(fire, paged) for fire in fires] == [True, False, False]
    assert rule.accepts(ready("list", page="3"), paged.model_copy(update={"params": {}}))


def test_required_values_that_the_reference_does_not_know() -> None:
    rule = exact_rule(CATALOG)
    no_time = BOOK.model_copy(update={"params": {"day": "Monday"}})
    assert rule.accepts(ready("book", day="Monday"), no_time)  # it need not be given
    assert not rule.accepts(ready("book", day="Monday", time="9"), no_time)  # the day is known: invented
    unlabelled = BOOK.model_copy(update={"params": {}})
    assert rule.accepts(ready("book", day="Monday", time="9"), unlabelled)  # nothing to compare with
    only_note = BOOK.model_copy(update={"params": {"note": "aisle"}})
    assert rule.accepts(ready("book", day="Monday", note="aisle"), only_note)
    assert not rule.accepts(ready("book", day="Monday", note="window"), only_note)


def test_without_a_catalog_every_value_of_the_reference_is_required() -> None:
    unknown = Reference(id="f", name="fly", params={"to": "Rome", "seat": "3A"})
    for rule in (EXACT, exact_rule(CATALOG)):
        assert rule.accepts(ready("fly", to="Rome", seat="3A", meal="none"), unknown)
        assert not rule.accepts(ready("fly", to="Rome"), unknown)


def test_a_wrong_value_is_false_by_the_exact_rule_and_leaves_the_reference_open() -> None:
    half, right = ready("book", day="Monday", time="10"), ready("book", day="Monday", time="9")
    (fire,) = classify(users(7, BOOK), 4, [half], fired={}, rule=EXACT)
    assert (fire.timing, fire.reference, fire.meant) == (Timing.FALSE, None, BOOK)
    (stray,) = classify(users(7, BOOK), 4, [ready("call")], fired={}, rule=EXACT)
    assert (stray.timing, stray.meant) == (Timing.FALSE, None)
    outputs = {2: [half], 4: [half, right], 5: [right]}
    exact = [(turn, j.timing) for turn, j in first_fires(users(7, BOOK), outputs, EXACT)]
    assert exact == [(2, "false"), (4, "false"), (4, "on_time"), (5, "repeat")]
    similar = [(turn, j.timing) for turn, j in first_fires(users(7, BOOK), outputs, MatchRule())]
    assert similar == [(2, "early")]  # and masked from there on


def test_both_rules_mask_the_same_actions_of_unknown_windows() -> None:
    unknown = Reference(id="u", name="book", params={"day": "Tuesday", "time": "9"})
    both = users(7, unknown, BOOK)
    for action in (ready("book", day="Monday", time="10"), ready("book", day="Tuesday"), ready("book")):
        masked = [classify(both, 4, [action], rule=rule)[0].masked for rule in (MatchRule(), EXACT)]
        assert masked[0] == masked[1]
