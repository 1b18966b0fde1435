"""The value that blocked a masked window."""

from __future__ import annotations

import pytest

from proactor.annotation.blocked import masked_window
from proactor.dialogue import Reference
from tests.proactor.annotation.scripted import BOOKING, TOOLS, talk

MASKED = Reference(id="a1", name="book", params={"day": "monday"}, coverage=(1, 7), null_reason="never_ready")


def blocked(log: Reference | None, reference: Reference = MASKED) -> tuple[str, ...]:
    dialogue = BOOKING.model_copy(update={"references": (log,) if log else ()})
    return masked_window(reference, dialogue, TOOLS[reference.name]).blocked_by


def action(trigger: int | None, **params: str) -> Reference:
    return Reference(id="r", name="book", params=params, observed_trigger=trigger)


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        (action(7, day="monday", people="four"), ["people=four: never said literally"]),
        (action(3, day="monday", people="4"), ["people=4: first said at turn 5, after the action at turn 3"]),
        (action(7, day="monday", people="4"), ["assent: the tool asks first"]),
        (action(0, day="monday"), ["day=monday: first said at turn 3, after the action at turn 0"]),
        (action(None, day="monday"), ["people: required, never given"]),
        (action(7, day="sunday", people="9"), ["day=sunday: never said", "people=9: never said"]),
        (None, ["people: required, never given"]),
    ],
)
def test_each_value_that_is_missing_is_named(log: Reference | None, wanted: list[str]) -> None:
    lines = blocked(log)
    assert len(lines) == len(wanted) and all(l.startswith(w) for l, w in zip(lines, wanted, strict=True))


def test_a_value_that_only_the_agent_said_is_named() -> None:
    dialogue = talk("book it", "monday for 4?", "yes", references=(action(1, day="monday", people="4"),))
    lines = masked_window(MASKED.model_copy(update={"coverage": (1, 3)}), dialogue, TOOLS["book"]).blocked_by
    assert lines[0] == "day=monday: first said at turn 2, after the action at turn 1"
    later = dialogue.model_copy(update={"references": (action(2, day="monday", people="4"),)})
    assert "not taken up before" in masked_window(MASKED, later, TOOLS["book"]).blocked_by[0]


def test_variants_count_as_said() -> None:
    said = action(7, day="monday", people="four").model_copy(update={"variants": {"people": ("4",)}})
    assert blocked(said)[0].startswith("assent")


def test_a_tool_that_does_not_ask_was_on_hold() -> None:
    note = Reference(id="n", name="note", params={"text": "monday"}, coverage=(3, 5))
    assert blocked(None, note) == ("never READY in the annotator's answers",)
    log = note.model_copy(update={"observed_trigger": 5})
    assert blocked(log, note) == ("on hold until it was run",)
