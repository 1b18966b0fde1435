"""Quality gates for annotations."""

from __future__ import annotations

from proactor.annotation.gates import (
    Trigger,
    acausal_values,
    drop_acausal,
    is_valid,
    logged_triggers,
    match_triggers,
    repeated_triggers,
)
from proactor.dialogue import Reference
from tests.proactor.annotation.scripted import talk
from tests.proactor.dialogues import users

LATE = Reference(
    id="r",
    name="book",
    params={"day": "Mon", "time": "9"},
    coverage=(1, 8),
    ready=(4, 8),
    value_turns={"day": 4, "time": 7},
)


def test_a_value_uttered_after_the_window_opens_fails_the_causality_gate() -> None:
    """T1.5."""
    assert acausal_values(users(8, LATE)) == [("r", "time", 7)]
    assert acausal_values(users(8, LATE.model_copy(update={"ready": (7, 8)}))) == []
    assert acausal_values(users(8, LATE.model_copy(update={"ready": None}))) == []


def test_a_reference_that_fails_causality_goes_and_the_others_stay() -> None:
    fine = LATE.model_copy(update={"id": "s", "ready": (7, 8)})
    assert drop_acausal(users(8, LATE, fine)) == ((fine,), 1)


def test_validity_is_a_share_and_nothing_said_is_valid() -> None:
    assert is_valid(0, 0) and is_valid(100, 98) and not is_valid(100, 97) and is_valid(100, 50, least=0.5)


def test_a_trigger_is_covered_by_a_reference_of_its_name_and_stored_with_the_likest() -> None:
    logged = users(
        9,
        Reference(
            id="x", name="book", params={"day": "Tue"}, coverage=(1, 9), ready=(9, 9), observed_trigger=3
        ),
        Reference(id="y", name="note", params={}, coverage=(1, 1), observed_trigger=8),
        Reference(id="z", name="note", params={}, coverage=(1, 1)),
    )
    references = (
        Reference(id="a1", name="book", params={"day": "Mon"}, coverage=(1, 5)),
        Reference(id="a2", name="book", params={"day": "Tue"}, coverage=(2, 3)),
        Reference(id="a3", name="note", coverage=(1, 7)),
    )
    kept, recall = match_triggers(references, logged_triggers(logged))
    assert recall == 0.5 and [r.observed_trigger for r in kept] == [None, 3, None]
    assert match_triggers(references, ()) == (references, None)
    assert match_triggers((), logged_triggers(logged)) == ((), 0.0)


def test_a_trigger_on_an_agents_turn_is_covered_at_the_user_turn_before() -> None:
    acted = Reference(id="x", name="book", coverage=(1, 3), ready=(3, 3), observed_trigger=4)
    before = Reference(id="y", name="note", observed_trigger=0)
    logged = logged_triggers(talk("a", "b", "c", "d", references=(acted, before)))
    assert [(t.name, t.turn) for t in logged] == [("book", 3), ("note", 0)]
    kept, recall = match_triggers((acted.model_copy(update={"observed_trigger": None}),), logged)
    assert recall == 0.5 and [r.observed_trigger for r in kept] == [3]


def test_a_call_made_again_in_one_window_is_named() -> None:
    logged = tuple(Trigger("book", {}, turn) for turn in (1, 3, 3, 9))
    windows = tuple(Reference(id=i, name="book", coverage=(1, 3)) for i in "ab")
    kept, recall = match_triggers(windows, logged)
    assert recall == 0.75 and [r.observed_trigger for r in kept] == [1, 3]
    assert repeated_triggers(kept, logged) == (logged[2],)
    assert repeated_triggers(kept, logged[:2]) == () and repeated_triggers((), logged) == ()
