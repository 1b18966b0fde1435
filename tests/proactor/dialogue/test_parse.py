"""Reading the agent's output: total, invertible, and every loss counted by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.dialogue import Action, Status
from proactor.dialogue.parse import Parsed, collapse, key, parse, render, split

WORDS = (
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
    .filter(lambda s: bool(s.strip()))
    .map(str.strip)
)
ACTIONS = st.lists(
    st.builds(
        Action,
        name=WORDS,
        params=st.dictionaries(
            WORDS | st.sampled_from(["READY", "ready", "pending", "name", "status", "params"]),
            WORDS,
            max_size=3,
        ),
        status=st.sampled_from(Status),
    ),
    max_size=4,
)
JSONISH = st.text('[]{}",:\\ntrufalse0123456789eE-. <think>/REDYPN`', max_size=80)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["READY", "PENDING", "name", "status", "params", "actions", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def action(name: str, status: str = "READY", **params: str) -> Action:
    return Action(name=name, params=params, status=Status(status))


@given(ACTIONS)
def test_parse_inverts_render(actions: list[Action]) -> None:
    read = parse(render(actions))
    assert read == Parsed(collapse(actions))
    assert read.ok


@settings(max_examples=300)
@given(st.text(st.characters(), max_size=80) | JSONISH | ANY_JSON.map(json.dumps))
def test_never_raises_and_never_drops_silently(text: str) -> None:
    read = parse(text)
    assert read.actions or read.unread or read.repaired or text.split() == ["[]"] or json.loads(text) == []
    assert all(count > 0 for count in (read.unread | read.repaired).values())
    assert len({key(a) for a in read.actions}) == len(read.actions)


@given(ACTIONS, st.data())
def test_a_cut_list_gives_its_complete_entries(actions: list[Action], data: st.DataObject) -> None:
    actions = list(collapse(actions))
    text = render(actions)
    cut = data.draw(st.integers(1, len(text) - 1))
    read = parse(text[:cut])
    assert list(read.actions) == actions[: len(read.actions)]
    assert read.unread == {"truncated": 1}


def test_canonical_form_is_compact() -> None:
    assert render([]) == "[]"
    assert render([action("book", date="Monday")]) == '[{"READY":"book","date":"Monday"}]'
    assert (
        render([action("book", "PENDING", READY="x")])
        == '[{"name":"book","status":"PENDING","params":{"READY":"x"}}]'
    )


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ('[{"name":"book","status":"READY","params":{"date":"Monday"}}]', []),
        ('[{"action": "book", "status": "ready_to_trigger", "arguments": {"date": "Monday"}}]', []),
        ('```json\n[{"READY":"book","date":"Monday"}]\n```', ["surrounding_text"]),
        ('<think>[{"READY":"other"}]</think>\n[{"READY":"book","date":"Monday"}]', []),
        ('I [would] say: [{"READY":"book","date":"Monday"}] now', ["surrounding_text"]),
        ('{"READY":"book","date":"Monday"}', ["single_object"]),
        ('{"actions":[{"READY":"book","date":"Monday"}]}', ["wrapper"]),
        ('[{"name":"book","params":{"date":"Monday"}}]', ["no_status"]),
        ('[{"name":"book","status":"READY","date":"Monday"}]', ["loose_params"]),
        ('[{"READY":"book","date":"Monday","time":null,"place":" "}]', ["null_value"]),
        ('[{"READY":"book","date":"Monday"},{"PENDING":"book","date":"monday."}]', ["duplicate"]),
    ],
)
def test_tolerated_forms(text: str, repaired: list[str]) -> None:
    read = parse(text)
    assert read.actions == (action("book", date="Monday"),)
    assert list(read.repaired) == repaired
    assert read.ok


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("I would wait.", "no_json"),
        ('[{"READY":"bo', "truncated"),
        ('{"READY":', "truncated"),
        ('[{"READY" "book"}]', "bad_json"),
        ("{book}", "no_json"),
        ('[{"READY" "book"},{"READY":"call"}]', "bad_json"),
        ('[{"READY":"call"} {"READY" "book"}]', "bad_json"),
        ("[" * 60_000, "too_deep"),
        ("<think>so", "unclosed_think"),
        ('["book"]', "not_an_object"),
        ('[{"READY":" "}]', "no_name"),
        ('[{"status":"READY"}]', "no_name"),
        ('[{"name":"book","status":"NOW"}]', "bad_status"),
        ('[{"name":"book","status":"READY","params":"x"}]', "bad_params"),
        ('[{"READY":"book","date":["Monday"]}]', "bad_value"),
    ],
)
def test_unread_reasons(text: str, reason: str) -> None:
    read = parse(text)
    assert reason in read.unread
    assert not read.ok


def test_what_is_beyond_the_limit_is_counted() -> None:
    assert parse("[]" + " x" * 60_000).unread == {"too_long": 1}


def test_numbers_keep_their_spelling() -> None:
    digits = "1" * 5000  # beyond Python's limit for int()
    (read,) = parse('[{"READY":"a","n":%s,"x":1.10,"y":true,"z":NaN}]' % digits).actions  # noqa: UP031 - braces
    assert read.params == {"n": digits, "x": "1.10", "y": "true", "z": "NaN"}


def test_duplicates_collapse_to_the_highest_status_at_the_first_place() -> None:
    read = collapse([action("a", "PENDING", x="1"), action("b"), action("a", "READY", x="1 ")])
    assert [(a.name, a.status) for a in read] == [("a", Status.READY), ("b", Status.READY)]


def test_half_a_surrogate_pair_becomes_text() -> None:
    (read,) = parse('[{"READY":"a\\ud800","x":"\\udfff\ud800"}]').actions
    (read.name + "".join(read.params.values())).encode()


@pytest.mark.parametrize(
    ("text", "thought", "fired"),
    [
        ('They may want a refund: [{"READY":"refund"}]? Wait.\n</think>\n\n[]', True, []),
        ('[{"READY":"refund"}] is a draft.</think>[{"READY":"book"}]', True, ["book"]),
        ("</think>[]", True, []),
        ('[{"READY":"note","text":"a </think> b"}]', False, ["note"]),
        ('<think>so</think>[{"READY":"note","text":"</think>"}]', True, ["note"]),
        ("[" * 5000 + "</think>[]", True, []),
    ],
)
def test_a_thought_that_the_prompt_opened_does_not_fire(text: str, thought: bool, fired: list[str]) -> None:
    assert [action.name for action in parse(text).actions] == fired
    assert (split(text).think is not None) == thought


BOOK = '{"READY":"book","date":"Monday"}'
CALL = '{"READY":"call"}'


@pytest.mark.parametrize(
    ("text", "names", "repaired", "unread"),
    [
        (f"{BOOK}\n{CALL}", ["book", "call"], {"objects": 1}, {}),
        (f"1. {BOOK}\n2. {CALL}", ["book", "call"], {"objects": 1, "surrounding_text": 1}, {}),
        (f"- {BOOK}", ["book"], {"single_object": 1, "surrounding_text": 1}, {}),
        (
            "```python\n[{'READY': 'book', 'date': None},]\n```",
            ["book"],
            {"loose_json": 1, "surrounding_text": 1, "null_value": 1},
            {},
        ),
        (f"As in [1]: [{BOOK}]", ["book"], {"surrounding_text": 1}, {}),
        (f"[{BOOK}] or [{CALL}]", ["book"], {"surrounding_text": 1}, {"more_values": 1}),
        (f"Perhaps {BOOK}? No: []", [], {"surrounding_text": 1}, {"more_values": 1}),
        (f"[{BOOK}]\n\n[{BOOK}]", ["book"], {"surrounding_text": 1}, {}),
        (f'[{BOOK},{{"READY" "x"}},{CALL}]', ["book", "call"], {"objects": 1}, {"bad_json": 1}),
        (f'{{"actions":[{BOOK},{{"REA', ["book"], {"wrapper": 1}, {"truncated": 1}),
        (f'{{"actions":[{BOOK}],"calls":[{CALL}]}}', ["book"], {"wrapper": 1}, {"more_values": 1}),
        ('[{"READY":"book","day":"a","day":"b"}]', ["book"], {}, {"repeated_key": 1}),
        ('[{"name":"book","params":{},"day":"a"}]', ["book"], {"no_status": 1, "ignored_key": 1}, {}),
    ],
)
def test_forms_of_lists_and_what_stands_beside_them(
    text: str, names: list[str], repaired: dict[str, int], unread: dict[str, int]
) -> None:
    read = parse(text)
    assert [action.name for action in read.actions] == names
    assert (read.repaired, read.unread) == (repaired, unread)
