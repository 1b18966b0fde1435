"""Transcripts as teams have them: chat messages with tool calls, CSV, logs that do not fit exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.catalogs import write_catalog
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.files import SourceError
from proactor.sources import Corpus, load

TOOLS = Catalog(
    tools=(
        Tool(name="book", effect="write", parameters=(Parameter(name="day"), Parameter(name="people"))),
        Tool(name="find"),
        Tool(name="pay", parameters=(Parameter(name="amount", type="number"),)),
    )
)


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def message(role: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    message("system", "You are helpful."),
    message("user", "A table on Monday for 4"),
    message("assistant", "One moment."),
    message("assistant", None, tool_calls=[call("book", '{"day": "Monday", "people": 4, "note": null}')]),
    message("tool", '{"ok": true}', tool_call_id="c"),
    message("assistant", "Done."),
    message("user", [{"type": "text", "text": "Thanks"}, {"type": "image_url", "image_url": {"url": "x"}}]),
]


def read(folder: Path, *records: Any, **options: Any) -> Corpus:
    write_catalog(TOOLS, folder / "catalog.json")
    (folder / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return load("jsonl", folder / "chats.jsonl", **options)


def talk(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"id": "t", "turns": [{"speaker": s, "text": t} for s, t in turns], **more}


# -- chat messages ---


def test_chat_messages_become_turns_and_tool_calls_references(tmp_path: Path) -> None:
    corpus = read(
        tmp_path, {"id": "a", "messages": CHAT, "tools": [{"type": "function", "function": {"name": "book"}}]}
    )
    (dialogue,) = corpus.dialogues
    assert [(t.speaker, t.text) for t in dialogue.turns] == [
        ("user", "A table on Monday for 4"),
        ("agent", "One moment."),
        ("agent", "Done."),
        ("user", "Thanks"),
    ]
    (reference,) = dialogue.references
    assert (reference.name, reference.params) == ("book", {"day": "Monday", "people": "4"})
    assert reference.observed_trigger == 1 and dialogue.tools == ("book",)
    wanted = {"system_messages": 1, "tool_messages": 1, "parts_without_text": 1}
    assert wanted.items() <= corpus.counters.items()


def test_chats_without_an_id_have_one_of_their_content(tmp_path: Path) -> None:
    records = [{"messages": CHAT}, {"messages": CHAT[1:]}]
    ids = [d.id for d in read(tmp_path, *records).dialogues]
    assert len(set(ids)) == 2
    assert [d.id for d in read(tmp_path, *records[::-1]).dialogues] == ids[::-1]
    with pytest.raises(SourceError, match="no id"):
        read(tmp_path, {"turns": []})


def test_a_chat_without_an_id_that_comes_again_is_in_no_other_part(tmp_path: Path) -> None:
    chats = [[message("user", f"hi {i}"), message("assistant", "hello")] for i in range(30)]
    once = [{"messages": chat} for chat in chats]
    again = [{"seen_at": 3, "messages": [dict(reversed(m.items())) for m in chat]} for chat in chats]
    named = [{"messages": chats[0], "id": "mine"}]
    corpora = {part: read(tmp_path, *once, *again, *named, split=part) for part in ("train", "dev", "test")}
    said = {part: {d.turns[0].text for d in c.dialogues if d.id != "mine"} for part, c in corpora.items()}
    assert sum(map(len, said.values())) == len(set().union(*said.values())) == 30
    for part, corpus in corpora.items():
        assert corpus.counters["repeated_chats"] == len(corpus.dropped) == len(said[part]) > 0
    whole = read(tmp_path, *once, *again, *again[:1], *named)
    first = whole.dialogues[0].id
    assert len(whole) == 31 and whole.counters["repeated_chats"] == 31
    assert whole.dropped[f"{first}-2"] == f"the same chat as {tmp_path / 'chats.jsonl'}:1"
    assert [whole.places[f"{first}-{n}"].rsplit(":")[-1] for n in (2, 3)] == ["31", "61"]
    other = [{"messages": chats[0], "domain": "other"}, {"messages": chats[0], "tools": ["book"]}]
    assert len(read(tmp_path, *once[:1], *other)) == 3, "what is read of them differs"


@pytest.mark.parametrize(
    ("messages", "counter"),
    [
        (
            [message("user", "hi"), message("assistant", "x", tool_calls=[call("book", "{")])],
            "unreadable_calls",
        ),
        (
            [message("user", "hi"), message("assistant", "x", tool_calls=[call("book", "[1]")])],
            "unreadable_calls",
        ),
        (
            [message("assistant", "x", tool_calls=[call("find", "")]), message("user", "hi")],
            "actions_before_user",
        ),
        ([message("user", "hi"), message("assistant", "x"), message("assistant", "")], "empty_turns"),
    ],
)
def test_what_a_chat_cannot_give_is_left_out_and_counted(
    tmp_path: Path, messages: list[dict[str, Any]], counter: str
) -> None:
    corpus = read(tmp_path, {"id": "a", "messages": messages})
    assert corpus.counters[counter] == 1 and corpus.dialogues[0].references == ()
    assert ("a" in corpus.losses) == (counter != "empty_turns")


def test_values_that_are_empty_were_not_given(tmp_path: Path) -> None:
    given = {"day": "Monday", "people": "", "note": " ", "tags": [], "filter": {}, "vip": False}
    turns = [message("user", "Monday"), message("assistant", "x", tool_calls=[call("book", given)])]
    corpus = read(tmp_path, {"id": "a", "messages": turns})
    assert corpus.dialogues[0].references[0].params == {"day": "Monday", "vip": "false"}
    assert corpus.counters["values_empty"] == 4


def test_a_log_beside_messages_is_not_read(tmp_path: Path) -> None:
    """Nothing says whether its triggers count the instructions."""
    log = [{"name": "find", "observed_trigger": 2}]
    corpus = read(tmp_path, {"id": "a", "messages": CHAT, "references": log, "withdrawn": log})
    (dialogue,) = corpus.dialogues
    assert [r.name for r in dialogue.references] == ["book"] and dialogue.withdrawn == ()
    assert corpus.counters["ignored_keys"] == 2


def test_values_keep_their_spelling_as_text(tmp_path: Path) -> None:
    arguments = '{"day": 12.50, "people": ["a", 2, true], "x": {"b": [1]}, "y": false}'
    older = message("assistant", "x", function_call={"name": "book", "arguments": arguments})
    (dialogue,) = read(tmp_path, {"id": "a", "messages": [message("user", "hi"), older]}).dialogues
    assert dialogue.references[0].params == {
        "day": "12.50",
        "people": "a, 2, true",
        "x": '{"b": ["1"]}',
        "y": "false",
    }


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("hi", "`messages` is not a list"),
        ([message("user", 3)], "message 1: content is neither text"),
        ([{"content": "x"}], "message 1: no role"),
        (
            [message("user", "x"), message("assistant", "", tool_calls=3)],
            "message 2: `tool_calls` is not a list",
        ),
        ([message("assistant", "", tool_calls=[{}])], "message 1: a tool call without a name"),
        ([message("narrator", "x")], "speaker 'narrator' is not known"),
    ],
)
def test_a_malformed_chat_is_named_by_its_line(tmp_path: Path, messages: Any, fault: str) -> None:
    with pytest.raises(SourceError, match=rf"chats\.jsonl:1: .*{fault}"):
        read(tmp_path, {"id": "a", "messages": messages})


# -- logs ---


def test_numbers_in_a_log_are_taken_as_text(tmp_path: Path) -> None:
    log = [{"name": "book", "params": {"people": 4, "day": None}, "observed_trigger": 1}]
    corpus = read(tmp_path, talk(("user", "for 4"), ("agent", "ok"), references=log))
    assert corpus.dialogues[0].references[0].params == {"people": "4"}
    assert corpus.dialogues[0].references[0].id == "a1" and corpus.counters["values_as_text"] == 1


def test_a_trigger_on_an_agents_turn_moves_to_the_users_before_it(tmp_path: Path) -> None:
    turns = (("user", "book"), ("agent", "One moment."), ("user", "ok"), ("agent", "Still there?"))
    log = [{"name": "book", "observed_trigger": at} for at in (1, 2, 4)]
    corpus = read(tmp_path, talk(*turns, references=log))
    assert [r.observed_trigger for r in corpus.dialogues[0].references] == [1, 1, 3]
    assert corpus.counters["triggers_moved"] == 2


def test_an_action_before_the_user_spoke_is_left_out(tmp_path: Path) -> None:
    log = [{"name": "find", "observed_trigger": 1}, {"name": "find"}]
    corpus = read(tmp_path, talk(("agent", "Hello"), ("user", "book"), references=log))
    assert [r.observed_trigger for r in corpus.dialogues[0].references] == [None]
    assert corpus.counters["actions_before_user"] == 1


def test_system_is_the_agent_only_where_no_other_is(tmp_path: Path) -> None:
    (alone,) = read(tmp_path, talk(("USER", "hi"), ("SYSTEM", "hello"))).dialogues
    assert [t.speaker for t in alone.turns] == ["user", "agent"]
    turns = (("system", "Be kind."), ("user", "book"), ("assistant", "Sure."), ("user", "now"))
    corpus = read(tmp_path, talk(*turns, references=[{"name": "find", "observed_trigger": 4}]))
    (dialogue,) = corpus.dialogues
    assert [t.text for t in dialogue.turns] == ["book", "Sure.", "now"]
    assert dialogue.references[0].observed_trigger == 3 and corpus.counters["system_messages"] == 1


@pytest.mark.parametrize("options", [{}, {"user": "Zoe"}])
def test_results_and_instructions_are_no_turns_in_any_form(tmp_path: Path, options: dict[str, str]) -> None:
    user = options.get("user", "user")
    turns = [("system", "Be kind."), ("developer", "Be brief."), (user, "book monday"), ("tool", "{}")]
    log = {"references": [{"name": "book", "params": {"day": "monday"}, "observed_trigger": 4}]}
    corpus = read(tmp_path, talk(*turns, ("function", "ok"), ("assistant", "Done."), **log), **options)
    (dialogue,) = corpus.dialogues
    assert [(t.speaker, t.text) for t in dialogue.turns] == [("user", "book monday"), ("agent", "Done.")]
    assert (corpus.counters["system_messages"], corpus.counters["tool_messages"]) == (2, 2)
    assert dialogue.references[0].observed_trigger == 1


def test_a_log_counts_on_without_the_turns_that_are_empty(tmp_path: Path) -> None:
    log = {"references": [{"name": "book", "params": {"day": "monday"}, "observed_trigger": 3}]}
    record = talk(("user", "hi"), ("agent", " "), ("user", "monday"), ("agent", "ok"), **log)
    corpus = read(tmp_path, record, empty="drop")
    assert corpus.counters["empty_turns"] == 1 and corpus.dialogues[0].references[0].observed_trigger == 2


@pytest.mark.parametrize("trigger", [4, 4.0, "4", " 4.0"])
def test_a_trigger_counts_on_however_it_is_written(tmp_path: Path, trigger: Any) -> None:
    turns = (("system", "Be kind."), ("user", "hi"), ("assistant", "hello"), ("user", "monday"))
    log = [{"name": "book", "observed_trigger": trigger}]
    (dialogue,) = read(tmp_path, talk(*turns, ("assistant", "ok"), references=log)).dialogues
    assert dialogue.turns[dialogue.references[0].observed_trigger - 1].text == "monday"  # type: ignore[operator]


@pytest.mark.parametrize("trigger", [4.5, "soon", "", True, float("nan"), [4], "9" * 5000])
def test_a_trigger_that_is_no_turn_is_named(tmp_path: Path, trigger: Any) -> None:
    log = [{"name": "book", "observed_trigger": trigger}]
    with pytest.raises(SourceError, match=r"chats.jsonl:1: observed_trigger: .* is not the number of a turn"):
        read(tmp_path, talk(("user", "hi"), ("agent", "ok"), references=log))


@pytest.mark.parametrize(
    "counted", [{"coverage": [1, 2]}, {"value_turns": {"day": 2}}, {"values_seen": 2, "value_turns": {}}]
)
def test_turns_that_an_action_counts_on_cannot_be_left_out(tmp_path: Path, counted: dict[str, Any]) -> None:
    log = {"references": [{"name": "book", "params": {"day": "monday"}, **counted}]}
    turns = (("user", "monday"), ("assistant", "ok"))
    assert len(read(tmp_path, talk(*turns, **log)).dialogues[0].references) == 1
    with pytest.raises(SourceError, match=f"cannot be left out: `{next(iter(counted))}` counts on it"):
        read(tmp_path, talk(("system", "Be kind."), *turns, **log))


@pytest.mark.parametrize(
    ("amount", "text", "value"),
    [
        (50.0, "50 dollars", "50"),
        (50.0, "$50.00", "50.00"),
        (12.5, "$12.50", "12.50"),
        (12.5, "12.5 dollars", "12.5"),
        (50.0, "fifty", "50"),
        (12.345, "a lot", "12.345"),
    ],
)
def test_a_number_is_written_as_it_was_said(tmp_path: Path, amount: float, text: str, value: str) -> None:
    log = [{"name": "pay", "params": {"amount": amount}, "observed_trigger": 1}]
    (dialogue,) = read(tmp_path, talk(("user", text), ("agent", "ok"), references=log)).dialogues
    assert dialogue.references[0].params == {"amount": value}


def test_a_tool_that_is_not_in_the_catalog(tmp_path: Path) -> None:
    log = [{"name": "fly", "observed_trigger": 1}, {"name": "find", "observed_trigger": 1}]
    record = talk(("user", "hi"), ("agent", "ok"), references=log, tools=["fly", "find"])
    with pytest.raises(SourceError, match=r"chats.jsonl:1: tool 'fly' is not in .*unknown_tools=drop"):
        read(tmp_path, record)
    corpus = read(tmp_path, record, unknown_tools="drop")
    assert [r.name for r in corpus.dialogues[0].references] == ["find"] == list(corpus.dialogues[0].tools)
    assert corpus.counters["unknown_tools"] == 2 and "fly: the tool is not in" in corpus.losses["t"][0]


def test_a_dropped_dialogue_is_named(tmp_path: Path) -> None:
    corpus = read(tmp_path, {**talk(("user", "hello?")), "id": "lonely"}, talk(("user", "a"), ("agent", "b")))
    assert corpus.dropped == {"lonely": "no agent turns"} and corpus.counters["no_agent_turns"] == 1


# -- CSV ---


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("conversation_id,role,content", ","),
        ("Dialogue ID;Speaker;Text", ";"),
        ("chat-id\tauthor\tmessage", "\t"),
    ],
)
def test_a_table_has_a_turn_a_row(tmp_path: Path, header: str, delimiter: str) -> None:
    rows = [
        ("1", "user", '"Hi, there; you"'),
        ("2", "customer", "yes"),
        ("1", "assistant", "Hello"),
        ("2", "bot", "ok"),
    ]
    lines = [header, *(delimiter.join(row) for row in rows)]
    (tmp_path / "x.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    corpus = load("jsonl", tmp_path)
    assert [(d.id, [(t.speaker, t.text) for t in d.turns]) for d in corpus.dialogues] == [
        ("1", [("user", "Hi, there; you"), ("agent", "Hello")]),
        ("2", [("user", "yes"), ("agent", "ok")]),
    ]
    assert len(load("jsonl", tmp_path / "x.csv", limit=1)) == 1


def test_other_columns_are_counted_and_the_domain_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,index,domain,speaker,text\na,1,food,user,x\na,2,food,agent,y\n")
    corpus = load("jsonl", tmp_path / "x.csv")
    assert corpus.dialogues[0].domain == "food" and corpus.counters["ignored_keys"] == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ":1: no column for the dialogue"),
        ("id,who,text\n", r":1: no column for the speaker \(speaker, role.*; found id, who, text"),
        ("id,role\n", ":1: no column for the text"),
        ("id,role,text\na,user,x\na,user\n", ":3: 2 columns, the header has 3"),
        ("id,role,text\n,user,x\n", ":2: no id in column 'id'"),
        ('id,role,text\na,user,"x\n', ": not CSV"),
        ("id,role,text\na,user,x\na,ghost,y\n", ":2: .*speaker 'ghost' is not known"),
    ],
)
def test_a_malformed_table_is_named_by_its_line(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(SourceError, match=rf"x\.csv:?\d*{fault}"):
        load("jsonl", tmp_path / "x.csv")
