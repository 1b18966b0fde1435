from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from proactor.dialogue import Dialogue, Reference, Status, Turn, normalise

TURNS = tuple(Turn(index=i, speaker="user" if i % 2 else "agent", text=f"turn {i}") for i in range(1, 6))


@pytest.mark.parametrize(
    "spelling", ["READY", "ready", " Ready ", "READY_TO_TRIGGER", "ready to trigger", "ready-to-trigger"]
)
def test_status_spellings(spelling: str) -> None:
    assert Status(spelling) is Status.READY


def test_status_order_and_refusal() -> None:
    assert [s.rank for s in (Status.PENDING, Status.READY, Status.TRIGGERED)] == [0, 1, 2]
    for wrong in ("", "DONE", 3):
        with pytest.raises(ValueError):
            Status(wrong)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Dr. Morgan", "dr morgan", True),
        ('"5 pm"', "5  PM.", True),
        ("luigi's", "Luigi's!", True),
        ("11:30", "1130", False),
        ("3.5", "35", False),
        ("a, b", "a b", True),
    ],
)
def test_normalise(one: str, other: str, equal: bool) -> None:
    assert (normalise(one) == normalise(other)) is equal


def test_accepts_variants() -> None:
    reference = Reference(
        id="a", name="t", params={"time": "half past five"}, variants={"time": ("17:30", "5:30 pm")}
    )
    assert reference.accepts("time", "5:30 PM") and reference.accepts("time", "Half past five.")
    assert not reference.accepts("time", "5 pm") and not reference.accepts("day", "17:30")


def test_decision_turns_are_user_turns() -> None:
    assert Dialogue(id="d", turns=TURNS).decision_turns == (1, 3, 5)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"coverage": (3, 2)}, "reversed"),
        ({"coverage": (0, 2)}, "before turn 1"),
        ({"ready": (1, 1)}, "without coverage"),
        ({"coverage": (2, 4), "ready": (1, 3)}, "outside coverage"),
        ({"coverage": (2, 4), "ready": (3, 5)}, "outside coverage"),
        ({"coverage": (2, 4), "ready": (4, 3)}, "reversed"),
        ({"covrage": (2, 4)}, "covrage"),
    ],
)
def test_bad_references(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Reference(id="a", name="t", **fields)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"turns": ()}, "no turns"),
        ({"turns": TURNS[1:]}, "turn indices"),
        ({"references": (Reference(id="a", name="t", coverage=(4, 6)),)}, "turn 6 of 5"),
        (
            {"references": (Reference(id="a", name="t", observed_trigger=6),)},
            "observed_trigger at turn 6 of 5",
        ),
        ({"references": (Reference(id="a", name="t", observed_trigger=-1),)}, "observed_trigger at turn -1"),
        (
            {"references": (Reference(id="a", name="t", value_turns={"day": 9}),)},
            "value_turns.day at turn 9 of 5",
        ),
        ({"references": (Reference(id="a", name="t", values_seen=0),)}, "values_seen at turn 0"),
        ({"references": (Reference(id="a", name="t"), Reference(id="a", name="t"))}, "twice"),
        (
            {"references": (Reference(id="a", name="t"),), "withdrawn": (Reference(id="a", name="t"),)},
            "twice",
        ),
        ({"references": (Reference(id="a", name="t"),), "tools": ("other",)}, "not offered"),
    ],
)
def test_bad_dialogues(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Dialogue(**({"id": "d", "turns": TURNS} | fields))
