"""An annotator's answers as marks: 200 and more mutations, each dropped for its reason; any text."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.annotation import MarkReader, MarkStatus, answer_schema, marks_of
from proactor.annotation.mark_reader import MOST_MARKS, fits
from proactor.annotation.marks import NO_ASSENT, render
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.windows import first_mention
from proactor.sources import load
from tests.proactor.annotation.scripted import BOOKING, TOOLS, mark

SYNTHETIC = load("synthetic", limit=60)
Entry = dict[str, Any]
Case = tuple[Dialogue, Catalog, int, list[Any], int]
"""A dialogue, its tools, a turn, the entries of a right answer about it, and the one to spoil."""


def invented_tool(entry: Entry, case: Case, draw: random.Random) -> Any:
    return {
        **entry,
        "name": draw.choice(["fly_to_moon", entry["name"] + "s", entry["name"].upper(), "ask the user"]),
    }


def invented_parameter(entry: Entry, case: Case, draw: random.Random) -> Any:
    return {
        **entry,
        "params": {**entry["params"], draw.choice(["mood", "Day ", "id", "parameters"]): "monday"},
    }


def wrong_value(entry: Entry, case: Case, draw: random.Random) -> Any:
    tool = case[1][entry["name"]]
    parameter = draw.choice(tool.parameters)
    bad = draw.choice([["monday"], {"is": "monday"}, True])
    return {**entry, "params": {**entry["params"], parameter.name: bad}}


def wrong_types(entry: Entry, case: Case, draw: random.Random) -> Any:
    return {
        **entry,
        **draw.choice(
            [
                {"name": 5},
                {"name": ["book"]},
                {"status": 1},
                {"status": ["READY"]},
                {"params": "day=monday"},
                {"params": [1]},
                {"params": 3},
                {"evidence": "all"},
                {"evidence": ["1"]},
                {"evidence": [1.5]},
                {"evidence": [True]},
                {"assent": "yes"},
                {"assent": [1]},
            ]
        ),
    }


def missing(entry: Entry, case: Case, draw: random.Random) -> Any:
    lost = draw.choice(["name", "status"])
    return draw.choice(
        [{k: v for k, v in entry.items() if k != lost}, {**entry, lost: None}, {**entry, lost: ""}]
    )


def no_status(entry: Entry, case: Case, draw: random.Random) -> Any:
    return {**entry, "status": draw.choice(["DONE", "READYISH", "maybe", "null"])}


def no_object(entry: Entry, case: Case, draw: random.Random) -> Any:
    return draw.choice(["READY", None, 7, [entry], True])


def outside(entry: Entry, case: Case, draw: random.Random) -> Any:
    return {**entry, "evidence": draw.choice([[0], [-2], [1, len(case[0].turns) + 1], [10**30]])}


def hindsight(entry: Entry, case: Case, draw: random.Random) -> Any:
    dialogue, tools, turn, _, _ = case
    parameter = tools[entry["name"]].parameters[0].name
    later = next(
        t.text for t in reversed(dialogue.turns) if first_mention(dialogue.turns, (t.text,)) == t.index > turn
    )
    return {**entry, "params": {**entry["params"], parameter: later}}


def unsaid_with_later_evidence(entry: Entry, case: Case, draw: random.Random) -> Any:
    parameter = case[1][entry["name"]].parameters[0].name
    return {**entry, "params": {**entry["params"], parameter: "xyzzy 7"}, "evidence": [case[2] + 1]}


MUTATIONS: list[tuple[Callable[[Entry, Case, random.Random], Any], str]] = [
    (invented_tool, "unknown_tool"),
    (invented_parameter, "unknown_parameter"),
    (wrong_value, "bad_type"),
    (wrong_types, "bad_type"),
    (missing, "missing_field"),
    (no_status, "bad_status"),
    (no_object, "not_an_object"),
    (outside, "outside_dialogue"),
    (hindsight, "hindsight_value"),
    (unsaid_with_later_evidence, "hindsight_value"),
]


def cases() -> list[Case]:
    collected: list[Case] = []
    for dialogue in SYNTHETIC.dialogues:
        tools = SYNTHETIC.catalog.subset(dialogue.tools)
        for turn, marks in marks_of(dialogue).items():
            entries = json.loads(render(marks))["actions"]
            if (
                entries
                and turn < len(dialogue.turns) - 2
                and all(p.type != "integer" for p in tools[entries[0]["name"]].parameters[:1])
            ):
                collected.append((dialogue, tools, turn, entries, 0))
    return collected


CASES = cases()


def closing(case: Case) -> bool:
    """Whether something is said later that was not said before."""
    dialogue, _, turn, _, _ = case
    return any(first_mention(dialogue.turns, (t.text,)) == t.index > turn for t in dialogue.turns)


@pytest.mark.parametrize(("mutate", "reason"), MUTATIONS, ids=[m.__name__ for m, _ in MUTATIONS])
def test_a_mutated_entry_is_dropped_for_its_reason_and_nothing_else_is(
    mutate: Callable[[Entry, Case, random.Random], Any], reason: str
) -> None:
    """22 outputs a mutation: 220 in all."""
    usable = [c for c in CASES if closing(c)]
    assert len(usable) > 22
    for number in range(22):
        draw = random.Random(f"{mutate.__name__}/{number}")
        case = draw.choice(usable)
        dialogue, tools, turn, entries, at = case
        spoilt = [mutate(entry, case, draw) if i == at else entry for i, entry in enumerate(entries)]
        whole = MarkReader(dialogue, tools).read(turn, json.dumps({"actions": entries}))
        assert not whole.drops and len(whole.marks) == len(entries) == whole.valid
        read = MarkReader(dialogue, tools).read(turn, json.dumps({"actions": spoilt}))
        assert read.drops == Counter({reason: 1}), spoilt
        assert read.marks == whole.marks[1:] and read.entries == len(entries)
        assert read.valid == len(entries) - (reason != "hindsight_value")


def test_an_answer_of_endless_marks_is_cut_and_counted() -> None:
    dialogue, tools, turn, entries, _ = CASES[0]
    entry = {k: v for k, v in entries[0].items() if k != "evidence"}
    parameter = tools[entry["name"]].parameters[0].name
    many = [{**entry, "params": {parameter: f"value {i}"}} for i in range(MOST_MARKS + 5)]
    read = MarkReader(dialogue, tools).read(turn, json.dumps({"actions": [*many, many[0]]}))
    assert len(read.marks) == MOST_MARKS and read.drops == Counter(too_many=5, duplicate=1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not_json"),
        ("I think nothing is open.", "not_json"),
        ('{"actions": nothing}', "not_json"),
        ("[" * 5000, "not_json"),
        ('[{"name":"book","status":"PEND', "truncated"),
        ("<think>hmm", "not_json"),
    ],
)
def test_an_answer_that_cannot_be_read_is_one_invalid_entry(text: str, reason: str) -> None:
    read = MarkReader(BOOKING, TOOLS).read(1, text)
    assert read.drops == Counter({reason: 1}) and (read.entries, read.valid, read.marks) == (1, 0, ())


def test_a_list_that_was_cut_off_keeps_its_whole_entries() -> None:
    read = MarkReader(BOOKING, TOOLS).read(
        3, render([mark("book", "PENDING", day="monday"), mark("note", "READY", text="x")])[:-40]
    )
    assert [m.name for m in read.marks] == ["book"] and read.drops == Counter(truncated=1)


def test_the_short_form_of_the_agent_is_read_too() -> None:
    marks = (mark("book", "PENDING", day="monday"), mark("note", "WITHDRAWN", text="hi"))
    reader = MarkReader(BOOKING, TOOLS, causality=False)
    assert reader.read(3, render(marks, flat=True)).marks == marks
    assert reader.read(3, f"```json\n{render(marks)}\n```").marks == marks
    assert reader.read(
        3, '[{"action":"book","status":"ready to trigger","arguments":{"day":"monday"}}]'
    ).marks == (mark("book", "READY", day="monday"),)


def test_null_is_a_value_not_given_and_says_that_there_is_no_assent() -> None:
    read = MarkReader(BOOKING, TOOLS).read(
        3, '[{"name":"book","status":"READY","params":{"day":"monday","people":null},"assent":null}]'
    )
    assert (
        read.marks == (mark("book", "READY", NO_ASSENT, day="monday"),)
        and not read.drops
        and not read.repairs
    )
    assert (
        MarkReader(BOOKING, TOOLS).read(3, '[{"name":"book","status":"READY","params":null}]').marks[0].assent
        is None
    )
    assert (
        MarkReader(BOOKING, TOOLS)
        .read(7, '[{"name":"book","status":"READY","params":{},"assent":7}]')
        .marks[0]
        .assent
        == 7
    )


def test_the_value_that_is_wrong_is_named() -> None:
    tools = Catalog(
        tools=(
            Tool(
                name="book",
                parameters=(
                    Parameter(name="meal", type="enum", values=("lunch", "dinner")),
                    Parameter(name="people", type="integer"),
                ),
            ),
        )
    )
    entries = [
        {"name": "book", "status": "READY", "params": {"meal": "tea"}},
        {"name": "book", "status": "READY", "params": {"people": "many"}},
        {"name": "book", "status": "READY", "params": {"hue": "red"}},
        {"name": "fly", "status": "READY"},
    ]
    read = MarkReader(BOOKING, tools).read(1, json.dumps({"actions": entries}))
    assert read.faults == (
        "book: meal=tea is none of lunch, dinner",
        "book: people=many is no integer",
        "book: no parameter 'hue'",
        "fly: no such tool",
    )
    assert read.drops == Counter(bad_type=2, unknown_parameter=1, unknown_tool=1)


def test_the_same_action_twice_counts_once_and_hindsight_may_be_allowed() -> None:
    twice = render([mark("note", "READY", text="hi"), mark("note", "PENDING", text="hi")])
    assert MarkReader(BOOKING, TOOLS).read(1, twice).drops == Counter(duplicate=1)
    later = render([mark("book", "PENDING", day="monday")])
    assert MarkReader(BOOKING, TOOLS).read(1, later).drops == Counter(hindsight_value=1)
    assert MarkReader(BOOKING, TOOLS, causality=False).read(1, later).marks


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("people", ("4", "four", "+4"), ("4.5", "many", "")),
        ("price", ("4.5", "1,200", "ten"), ("dear", "nan", "inf")),
        ("loud", ("true", "no"), ("loud", "1")),
        ("kind", ("big", "Small"), ("huge",)),
        ("day", ("next week", "5"), ()),
    ],
)
def test_types_parse(name: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    parameter = next(p for tool in TOOLS.tools for p in tool.parameters if p.name == name)
    assert all(fits(parameter, text) for text in good) and not any(fits(parameter, text) for text in bad)


@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["name", "status", "params", "evidence", "assent", "READY", "book", "day"])
                | st.text(),
                x,
            )
        ),
    ).map(json.dumps)
)
@settings(max_examples=80, deadline=None)
def test_any_text_is_read_and_every_entry_is_a_mark_or_counted(text: str) -> None:
    read = MarkReader(BOOKING, TOOLS).read(3, text)
    assert len(read.marks) + read.drops.total() == read.entries and 0 <= read.valid <= read.entries


def test_the_schema_is_closed_and_asks_for_everything_as_strict_servers_want() -> None:
    def objects(node: Any) -> list[dict[str, Any]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = [node] if isinstance(node, dict) and node.get("type") == "object" else []
        return own + [o for value in inner for o in objects(value)]

    schemas = objects(answer_schema(TOOLS))
    assert len(schemas) == 1 + 2 * len(TOOLS)
    assert all(o["additionalProperties"] is False and o["required"] == list(o["properties"]) for o in schemas)
    book = answer_schema(TOOLS)["properties"]["actions"]["items"]["anyOf"][0]["properties"]
    assert book["name"]["enum"] == ["book"] and book["status"]["enum"] == [s.value for s in MarkStatus]
    assert book["params"]["properties"]["people"] == {"type": ["integer", "null"]}


@pytest.mark.parametrize("value", ["\\ud800", "\\u0000", "\\u001b[0m", "\ud800"])
def test_any_characters_in_a_value_are_text(value: str) -> None:
    read = MarkReader(BOOKING, TOOLS).read(
        7, f'[{{"name":"note","status":"READY","params":{{"text":"{value}"}}}}]'
    )
    (noted,) = read.marks
    noted.params["text"].encode()
    assert not read.drops


def test_objects_one_a_line_are_read_and_what_cannot_be_is_counted() -> None:
    book, note = '{"name":"book","status":"PENDING"}', '{"name":"note","status":"READY"}'
    reader = MarkReader(BOOKING, TOOLS)
    assert [m.name for m in reader.read(3, f"1. {book}\n2. {note}").marks] == ["book", "note"]
    assert reader.read(3, f"[{book}] or [{note}]").drops == Counter(more_values=1)
    assert reader.read(3, book.replace("PENDING", 'PENDING","status":"READY')).drops == Counter(
        repeated_key=1
    )
    assert (
        reader.read(3, f'{{"actions":[{book},{{"na').marks
        and reader.read(3, "{'name':'book','status':'READY'}").marks
    )
    many = "".join(f'{{"name":"note","status":"READY","params":{{"text":"{i}"}}}}' for i in range(60))
    assert len(reader.read(7, f"[{many}]").marks) == 60
