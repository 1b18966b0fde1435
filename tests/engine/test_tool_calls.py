"""Replies read: every form of call, every way to break one, and nothing that is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import Problem, Reply, ToolCall, read_reply
from proactor.engine.tool_calls import Form

LETTERS = st.sampled_from('aZ09 _"\\\n<>/{}[]:é😀')
TEXTS = st.text(LETTERS, max_size=8)
NAMES = st.text(LETTERS, min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, NAMES, st.dictionaries(TEXTS, VALUES, max_size=3))
PLAIN = st.text(st.sampled_from("ab \n?;,é"), max_size=12)


def hermes(call: ToolCall) -> str:
    return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"


def llama3(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)


def kinds(text: str, form: Form = "hermes") -> list[str]:
    return [problem.kind for problem in read_reply(text, form).problems]


@given(st.lists(CALLS, min_size=1, max_size=3), st.lists(PLAIN, min_size=4, max_size=4))
def test_calls_and_the_text_around_come_back(calls: list[ToolCall], around: list[str]) -> None:
    text = around[0]
    for call, after in zip(calls, around[1:], strict=False):
        text += hermes(call) + after
    reply = read_reply(text)
    used = around[: len(calls) + 1]
    assert reply.calls == tuple(calls) and reply.problems == ()
    assert reply.content == "\n".join(piece for said in used if (piece := said.strip()))
    assert reply.counts()["text_around"] == bool(reply.content)


@given(st.lists(CALLS, min_size=1, max_size=3), PLAIN)
def test_llama_calls_come_back(calls: list[ToolCall], before: str) -> None:
    reply = read_reply(before + "; ".join(map(llama3, calls)), "llama3")
    assert reply.calls == tuple(calls) and reply.problems == ()
    if not before.strip():
        assert read_reply("<|python_tag|>" + "; ".join(map(llama3, calls)), "llama3") == reply


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "f"', "}", '"', "[", "\\", " x"])))
def test_nothing_is_lost(pieces: list[str]) -> None:
    """Whatever is no call stands in the content, letter by letter."""
    text = "".join(pieces)
    for form in ("hermes", "llama3"):
        reply = read_reply(text, form)
        if not reply.calls:
            assert reply.content == text
        assert sum(reply.counts().values()) >= 1 and all(p.text in text for p in reply.problems)


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("", "broken_json"),
        ('{"name": "f", "arguments": {"a": 1}', "broken_json"),
        ("{'name': 'f'}", "broken_json"),
        ('{"name": "f", "arguments": {"a": "\n"}}', "broken_json"),
        ("[" * 100_000, "too_deep"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "repeated_key"),
        ('{"name": "f", "arguments": {"a": NaN}}', "bad_number"),
        ('{"name": "f", "arguments": {"a": 1e999}}', "bad_number"),
        ('{"name": "f", "arguments": {"a": 1' + "0" * 5000 + "}}", "bad_number"),
        ('{"name": "f", "arguments": {"a": "\\ud83d"}}', "bad_text"),
        ("42", "not_an_object"),
        ("[]", "empty_list"),
        ('{"arguments": {}}', "no_name"),
        ('{"name": "", "arguments": {}}', "no_name"),
        ('{"name": "f", "arguments": [1]}', "arguments_not_an_object"),
        ('{"name": "f", "arguments": {}} and so on', "text_inside"),
        ('[{"name": "f", "arguments": {}}, {"name": 1}]', "no_name"),
    ],
)
def test_broken_calls_are_named_and_kept_as_text(inside: str, kind: str) -> None:
    good = hermes(ToolCall("g", {"x": 1}))
    broken = f"<tool_call>{inside}</tool_call>"
    reply = read_reply(f"First {broken} then {good}")
    assert reply.calls == (ToolCall("g", {"x": 1}),)
    assert reply.problems == (Problem(kind, broken),)  # type: ignore[arg-type]
    assert reply.content == f"First\n{broken}\nthen"
    assert reply.counts() == {"replies": 1, "calls": 1, "text_around": 1, kind: 1}


@pytest.mark.parametrize(
    ("text", "calls", "problems"),
    [
        ('<tool_call>{"name": "f"}', 1, ["unclosed"]),
        ('<tool_call>{"name": "f"}<tool_call>{"name": "g"}</tool_call>', 2, ["unclosed"]),
        ('<tool_call>{"name": "f", "arguments": {"a', 0, ["broken_json"]),
        ('{"name": "f"}</tool_call>', 0, ["stray_close"]),
        ('<tool_call>[{"name": "f"}, {"name": "g", "arguments": null}]</tool_call>', 2, []),
        ('<tool_call>{"name": "f", "arguments": "{}", "why": "so"}</tool_call>', 1, ["extra_keys"]),
        ('<tool_call>{"type": "function", "function": {"name": "f"}}</tool_call>', 1, []),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call> <tool_call>"}}</tool_call>', 1, []),
        ("<think>\n<tool_call>{}</tool_call></think>\n\n<tool_call>{}</tool_call>", 0, ["no_name"]),
        ('<think>\n<tool_call>{"name": "f"}</tool_call>', 0, ["unclosed_thinking"]),
    ],
)
def test_tags(text: str, calls: int, problems: list[str]) -> None:
    reply = read_reply(text)
    assert len(reply.calls) == calls
    assert [problem.kind for problem in reply.problems] == problems


def test_arguments_as_json_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert read_reply(text).calls == (ToolCall("f", {"a": 1}),)
    assert kinds('<tool_call>{"name": "f", "arguments": "{} x"}</tool_call>') == ["text_inside"]
    assert kinds('<tool_call>{"name": "f", "arguments": "a=1"}</tool_call>') == ["broken_json"]


def test_thinking_is_set_apart() -> None:
    call = hermes(ToolCall("f"))
    calls = (ToolCall("f"),)
    assert read_reply(f"<think>\nhm\n</think>\n\n{call}") == Reply("", calls, (), "hm")
    assert read_reply(f"hm\n</think>\n\n{call}") == Reply("", calls, (), "hm")  # opened by the prompt
    quoted = hermes(ToolCall("f", {"text": "</think>"}))
    assert read_reply(quoted) == Reply("", (ToolCall("f", {"text": "</think>"}),))


@pytest.mark.parametrize(
    ("text", "calls", "problems", "content"),
    [
        ('{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}', 2, [], ""),
        ('[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]', 2, [], ""),
        ('Well: {"name": "f", "arguments": {}} so', 1, [], "Well:\nso"),
        ('{"function": {"name": "f", "parameters": {}}}', 1, [], ""),
        ('{"name": "f", "parameters": {"a": ', 0, ["broken_json"], '{"name": "f", "parameters": {"a": '),
        ('{"name": "f", "parameters": 3}', 0, ["arguments_not_an_object"], '{"name": "f", "parameters": 3}'),
        ('a set {1, 2} and {"x": 1}', 0, [], 'a set {1, 2} and {"x": 1}'),
    ],
)
def test_llama_forms(text: str, calls: int, problems: list[str], content: str) -> None:
    reply = read_reply(text, "llama3")
    assert (len(reply.calls), reply.content) == (calls, content)
    assert [problem.kind for problem in reply.problems] == problems


@pytest.mark.parametrize("form", ["hermes", "llama3"])
@pytest.mark.parametrize(
    "piece",
    [
        "<tool_call>",
        "<tool_call>[",
        '<tool_call>["",',
        '<tool_call>{"a": "',
        '<tool_call>{"name": "f"}',
        "</tool_call>",
        "{",
        '{"a": ',
        '{"a": "\\',
        '{"name": "f", "parameters": {"a": {}, ',
        "<think></think>",
    ],
)
def test_long_nonsense_is_read_in_one_pass(piece: str, form: Form) -> None:
    """A reader that began again at every brace or tag would not come back from these."""
    text = piece * (50_000 // len(piece))
    reply = read_reply(text, form)
    assert len(reply.content) <= len(text)


def test_types() -> None:
    reply: Any = read_reply("hello")
    assert reply == Reply("hello") and reply.counts() == {"replies": 1}
