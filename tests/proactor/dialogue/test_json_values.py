"""JSON in what a model wrote: which forms are found, what is named as broken, and linear work."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.annotation import MarkReader
from proactor.catalogs import propose
from proactor.dialogue import json_values, normalise, state_graph
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.json_values import DEEPEST, Number, find_values
from proactor.dialogue.parse import parse
from proactor.ruler.verdict import Unusable, read_verdict
from tests.proactor.annotation.scripted import BOOKING, TOOLS

HOSTILE = (
    "[",
    "{",
    '{"a":{',
    '"\\"',
    '\\"',
    '[{"',
    "['",
    "{'",
    "['\\'",
    '[{"READY" "',
    "{'a' ",
    "[1,",
    '["\\x" ',
    "[ ",
    "[] ",
    "[x",
    "<think>",
    "</think>",
    "<graph>",
    '."',
    "?!",
    "``` ",
    "{}",
    '{"READY":"a"} ',
    "[" * DEEPEST + "]",
    "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1),
)


class Counting:
    """A pattern that counts the characters its matches pass over, and its calls."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.work = pattern, 0

    def match(self, text: str, position: int = 0) -> re.Match[str] | None:
        found = self.pattern.match(text, position)
        self.work += 1 + (found.end() - position if found else 0)
        return found


@pytest.mark.parametrize("piece", HOSTILE)
def test_work_grows_with_the_length(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Counting(json_values._TOKEN)  # type: ignore[arg-type]
    monkeypatch.setattr(json_values, "_TOKEN", token)
    many = piece * (20_000 // len(piece))
    for text in (many, "x [" + many, many + '"' + many):
        token.work = 0
        find_values(text)
        assert token.work <= 4 * len(text) + 100


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_million_characters_end_in_every_reader(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    assert parse(text).unread
    state_graph.read(text[:20_000])
    state_graph.NO_GRAPH.after(text)
    assert isinstance(read_verdict(text, ("1",)), Unusable)
    assert isinstance(read_verdict(text[:20_000], ("1",)), Unusable)
    MarkReader(BOOKING, TOOLS).read(1, text)
    normalise(text + "a")
    assert parse(json.dumps([{"READY": "a", "x": text[:20_000] + "a"}])).ok


@pytest.mark.parametrize("piece", ["A", "a_", "/", ". ", "cannot be ", "Aa", "a cannot be un"])
def test_a_million_characters_end_in_a_proposal(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    propose(Catalog(tools=(Tool(name=text, description=text),)))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('[{"a":1}]', [[{"a": "1"}]]),
        ('{"a":1}\n{"a":2}', [{"a": "1"}, {"a": "2"}]),
        ('1. {"a":1}\n2. {"a":2}', [{"a": "1"}, {"a": "2"}]),
        (
            "```python\n[{'a': 'it\\'s', \"b\": None, 'c': True,}]\n```",
            [[{"a": "it's", "b": None, "c": True}]],
        ),
        ('{"a":1 "b":[1 2,]}', [{"a": "1", "b": ["1", "2"]}]),
        ('{"a":"\\ud83d\\ude00 \\ud83d"}', [{"a": "\N{GRINNING FACE} ?"}]),
        ("{'a':'\\ud83d\\ude00 \\ud83d \\d'}", [{"a": "\N{GRINNING FACE} ? \\d"}]),
        ('{"a\ud800":"\\u0000"}', [{"a?": "\0"}]),
        ("I [would] say {so}, (see [a]) or [not", []),
        ("See [1]: []", [["1"], []]),
    ],
)
def test_forms(text: str, values: list[object]) -> None:
    found = find_values(text)
    assert [f.value for f in found] == values and not any(f.failure for f in found)


@pytest.mark.parametrize(
    ("text", "value", "failure"),
    [
        ('[{"a":"b"},{"a":"c', [{"a": "b"}], "truncated"),
        ("[{'a':'b'},{'a':'c", [{"a": "b"}], "truncated"),
        ('{"actions":[{"a":"b"},{"a":tr', {"actions": [{"a": "b"}]}, "truncated"),
        ('[{"a":"b"}, -1.', [{"a": "b"}], "truncated"),
        ('[{"a":"b"},{"a" "c"}]', [{"a": "b"}], "bad_json"),
        ('[{"a":"b"}}', [{"a": "b"}], "bad_json"),
        ('{"a":}', None, "bad_json"),
        ("[" * 100 + "]" * 100, [], "too_deep"),
    ],
)
def test_the_complete_items_of_a_broken_value_remain(text: str, value: object, failure: str) -> None:
    (found,) = find_values(text)
    assert (found.value, found.failure) == (value, failure)


def test_a_key_with_two_values_is_named() -> None:
    (found,) = find_values('{"a":1,"b":2,"a":3,"b":2}')
    assert found.value == {"a": "3", "b": "2"} and found.value.repeated == {"a"}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), st.sampled_from([json.dumps, repr]), st.integers(0, 3))
def test_what_python_writes_is_read_wherever_it_stands(
    values: list[object], write: object, junk: int
) -> None:
    text = "so [x] " * junk + write(values)  # type: ignore[operator]

    def as_text(value: object) -> object:
        if isinstance(value, list):
            return [as_text(item) for item in value]
        if isinstance(value, dict):
            return {key: as_text(item) for key, item in value.items()}
        return Number(value) if isinstance(value, int) and not isinstance(value, bool) else value

    (found,) = find_values(text)
    assert found.value == as_text(values) and not found.failure


@given(st.text("[]{}\",:\\'u0d8true1 \n<>/", max_size=60))
def test_total(text: str) -> None:
    places = [(f.start, f.end) for f in find_values(text)]
    assert all(a < b for a, b in places) and places == sorted(places)
    assert all(first[1] <= second[0] for first, second in pairwise(places))
