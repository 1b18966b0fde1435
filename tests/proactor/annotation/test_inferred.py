"""Enum values that nobody said literally: the rule, the windows that rest on it, and what counts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proactor.annotation import annotate
from proactor.annotation.inferred import inferred_values
from proactor.annotation.log_oracle import LogOracle
from proactor.annotation.report_json import notes, report_table
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.sources import load
from tests.proactor.annotation.scripted import talk

REASONS = ("double_charge", "late delivery", "broken-item")
REFUND = Tool(
    name="refund",
    effect="read",
    parameters=(
        Parameter(name="order"),
        Parameter(name="reason", type="enum", values=REASONS),
        Parameter(name="note", required=False),
    ),
)
TOOLS = Catalog(tools=(REFUND,))
CALL = Reference(
    id="r1", name="refund", params={"order": "77", "reason": "double_charge"}, observed_trigger=5
)


def logged(spoken: tuple[str, ...], **fields: object) -> Dialogue:
    """A conversation with the call, run after five turns at most."""
    update = {"observed_trigger": min(5, len(spoken)), **fields}
    return talk(*spoken, references=(CALL.model_copy(update=update),))


@pytest.mark.parametrize(
    ("spoken", "turn"),
    [
        # said in another form
        (("Double-charges on my card.", "Which order?", "77"), 1),
        (("Hello", "Yes?", "order 77, a DOUBLE CHARGE"), 3),
        # not said at all: with the other required values
        (("You took it twice", "Which order?", "77"), 3),
        (("You took it twice for 77", "Sorry.", "So?"), 1),
        (("You took it twice", "Order 77?", "yes"), 3),  # the agent's value counts from the user's next turn
        # another member is mentioned, a value is missing, or it comes after the action
        (("A broken item, 77", "Sorry.", "So?"), None),
        (("Late deliveries", "no", "late delivery, 77"), None),
        (("You took it twice", "Which order?", "that one"), None),
        (("You took it twice", "Which order?", "the last", "?", "that", "?", "77"), None),
    ],
)
def test_the_rule(spoken: tuple[str, ...], turn: int | None) -> None:
    found = inferred_values(logged(spoken), TOOLS)
    assert [v.turn for v in found] == ([] if turn is None else [turn])
    assert all((v.reference, v.parameter, v.value) == ("r1", "reason", "double_charge") for v in found)


@pytest.mark.parametrize("trigger", [0, 1])
def test_nothing_is_inferred_after_the_action(trigger: int) -> None:
    spoken = ("You took it twice", "Which order?", "77, a double charge")
    assert inferred_values(logged(spoken, observed_trigger=trigger), TOOLS) == ()


def test_nothing_is_inferred_where_it_is_not_asked_for() -> None:
    spoken = ("You took it twice for 77", "Sorry.", "So?")
    text = REFUND.model_copy(update={"parameters": (REFUND.parameters[0], Parameter(name="reason"))})
    assert not inferred_values(logged(spoken), Catalog(tools=(text,)))
    alone = REFUND.model_copy(update={"parameters": REFUND.parameters[1:2]})
    only = logged(spoken, params={"reason": "double_charge"})
    assert not inferred_values(only, Catalog(tools=(alone,)))
    for own in ({"value_turns": {"order": 1}}, {"coverage": (1, 3), "ready": (3, 3)}):
        assert not inferred_values(logged(spoken, **own), TOOLS)


def test_a_literal_value_is_not_inferred() -> None:
    params = {"order": "77", "reason": "late delivery"}
    said = logged(("late delivery of 77", "Sorry", "So?"), params=params)
    assert not inferred_values(said, TOOLS)


def test_chat_messages_with_an_enum_get_windows_that_say_so(tmp_path: Path) -> None:
    call = {"name": "refund", "arguments": json.dumps({"order": 77, "reason": "double_charge"})}
    messages = [
        {"role": "user", "content": "You took the money twice."},
        {"role": "assistant", "content": "Which order is it?"},
        {"role": "user", "content": "Order 77."},
        {"role": "assistant", "content": "A moment."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "assistant", "content": "Done."},
    ]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"id": "c1", "messages": messages}) + "\n")
    (tmp_path / "catalog.json").write_text(TOOLS.model_dump_json())
    found = load("jsonl", tmp_path / "chats.jsonl")
    report = annotate(found.dialogues, found.catalog, LogOracle(), tmp_path / "out")
    (reference,) = load("jsonl", tmp_path / "out").dialogues[0].references
    assert reference.ready == (3, 5) and report["masked"] == []
    assert report["values_inferred"] == 1
    (window,) = report["inferred"]
    assert (window["dialogue"], window["reference"]) == ("c1", reference.id)
    assert notes(report) == ["inferred: c1 refund: reason=double_charge from turn 3"]
    assert report_table(report).row_count
    without = annotate(found.dialogues, found.catalog, LogOracle(infer=False), tmp_path / "plain")
    assert without["values_inferred"] == 0 and not without["inferred"]
    assert "reason=double_charge: never said literally" in without["masked"][0]["blocked_by"][0]


def test_the_windows_of_a_corpus_stay() -> None:
    corpus = load("synthetic", limit=40)
    assert not any(inferred_values(d, corpus.catalog.offered_in(d)) for d in corpus.dialogues if d.references)
