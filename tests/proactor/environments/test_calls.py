"""Calls as texts with a verb in brackets, and as the one tool: what becomes of wrong verbs and content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.environments.calls import VERBS, canonical, from_text, plain, read_call, to_text
from proactor.environments.protocol import Call


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"choice": "action", "content": "1 2 3 4"}, "[action] 1 2 3 4"),
        ({"choice": "answer", "content": "[answer] 5"}, "[answer] 5"),
        ({"choice": "action", "content": "[answer] 5"}, "[action] [answer] 5"),
        ({"choice": "guess", "content": "5"}, "5"),
        ({"choice": "guess", "content": "[answer] 5"}, "[answer] 5"),
        ({"choice": "finish", "content": "done"}, "[finish]"),
        ({"choice": "action"}, "[action] "),
        ({"content": "hello"}, "hello"),
        ({"choice": ["action"], "content": [1, 2]}, "[1, 2]"),
        ({"choice": "action", "content": None}, "[action] None"),
        ({}, ""),
    ],
)
def test_the_text_that_an_environment_gets(arguments: dict, text: str) -> None:
    assert to_text(read_call("interact_with_env", arguments)) == text


def test_another_tool_is_a_verb_that_no_environment_knows() -> None:
    call = read_call("get_weather", {"city": "Rome"})
    assert call == Call("get_weather", "", {"city": "Rome"})
    assert plain(call) == Call("", "")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (" [answer]5 ", Call("answer", "5")),
        ("[answering] 5", Call("", "[answering] 5")),
        ("[Answer] 5", Call("", "[Answer] 5")),
        ("so [answer] 5", Call("", "so [answer] 5")),
        ("[action]\n1 2", Call("action", "1 2")),
    ],
)
def test_the_call_that_a_text_holds(text: str, call: Call) -> None:
    assert from_text(text) == call


def test_canonical_calls_differ_in_more_than_case_space_and_order() -> None:
    def tool(**arguments: object) -> tuple[str, str, str]:
        return canonical(Call("propose", "", arguments))

    assert canonical(Call("answer", "Fix  Bug")) == canonical(Call("answer", "fix bug"))
    assert tool(task="Fix  Bug", at=1) == tool(at=1, task="fix bug")
    assert tool(a={"x": ["One "], "y": {"p": 1, "q": 2}}) == tool(a={"y": {"q": 2, "p": 1}, "x": ["one"]})
    different = [tool(), tool(a=1), tool(a="1"), tool(a=[1, 2]), tool(a=[2, 1]), tool(a={"x": 1}), tool(b=1)]
    assert len(set(different)) == len(different)


@given(st.sampled_from(VERBS), st.text())
def test_a_call_survives_as_text(verb: str, content: str) -> None:
    there = from_text(to_text(Call(verb, content)))
    assert there.verb == verb
    if not content.startswith(f"[{verb}]"):
        assert there.content == content.strip()
    assert plain(there) == there or there.content.startswith(f"[{verb}]")
