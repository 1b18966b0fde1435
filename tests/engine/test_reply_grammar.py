"""Grammars of replies: what each template's calls, texts and thoughts may be, and that they are read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from proactor.engine import Constraint, EngineError
from proactor.engine.chat import ChatFormat
from proactor.engine.grammars import Grammars
from proactor.engine.reply_grammar import call_form, reply_constraint
from proactor.engine.tool_template import ToolTemplate
from tests.engine.chat_templates import TEMPLATES, tokenizer

pytest.importorskip("llguidance")

BOOK = {
    "name": "book",
    "strict": True,
    "parameters": {"type": "object", "properties": {"day": {"enum": ["Mon", "Tue"]}}, "required": ["day"]},
}
REPAIR = {
    "name": "book_repair",  # begins with another's name
    "parameters": {
        "$defs": {"device": {"enum": ["x", "y"]}},
        "type": "object",
        "properties": {"device": {"$ref": "#/$defs/device"}},
        "required": ["device"],
    },
}
NOW = {"name": "now"}
TOOLS = [BOOK, REPAIR, NOW]
FORMAT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
MONDAY = ("book", {"day": "Mon"})


class Speaker:
    """A template with the means to try texts on constraints."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name, self.template = name, ToolTemplate(ChatFormat(tokenizer))
        self.ends = frozenset({tokenizer.eos_token_id})
        self.grammars = Grammars(tokenizer, len(tokenizer), self.ends)

    def calls(self, *calls: tuple[str, Mapping[str, Any]]) -> str:
        """Calls as the template itself writes them."""
        made = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
        text = self.template.answer({"role": "assistant", "content": "", "tool_calls": made}).text
        return text.removesuffix(self.template.call_end).rpartition("</think>")[2].lstrip("\n")

    def says(self, constraint: Constraint | None, text: str) -> bool:
        assert constraint is not None
        matcher = self.grammars.compile(constraint, self.ends).matcher(self.ends)
        ids = self.template.text.markup(text)
        matcher.follow(ids)
        return matcher.taken == len(ids) and matcher.core.is_accepting()


@pytest.fixture(scope="module", params=TEMPLATES)
def speaker(request: pytest.FixtureRequest) -> Speaker:
    return Speaker(request.param, tokenizer(TEMPLATES[request.param]))


def test_calls_that_are_required(speaker: Speaker) -> None:
    wanted = reply_constraint(speaker.template, TOOLS, "required")
    good = [MONDAY, ("book_repair", {"device": "y"}), ("now", {})]
    for call in good:
        text = speaker.calls(call)
        assert speaker.says(wanted, text), text
        [read] = speaker.template.read_text(text).calls
        assert (read.name, read.arguments) == call
    bad = [
        ("book", {"day": "Sun"}),
        ("book", {}),
        ("now", {"a": 1}),
        ("cook", {}),
        ("book_repair", {"day": "Mon"}),
    ]
    for call in bad:
        assert not speaker.says(wanted, speaker.calls(call)), call
    for text in (
        "",
        "Hello",
        f"Hello {speaker.calls(MONDAY)}",
        f"{speaker.calls(MONDAY)} and",
        speaker.calls(MONDAY)[:-1],
    ):
        assert not speaker.says(wanted, text), text
    if speaker.name != "llama3":  # one call at once
        two = speaker.calls(*good[:2])
        assert speaker.says(wanted, two) and len(speaker.template.read_text(two).calls) == 2
        assert not speaker.says(reply_constraint(speaker.template, TOOLS, "required", parallel=False), two)


def test_a_named_tool_and_no_other(speaker: Speaker) -> None:
    wanted = reply_constraint(speaker.template, TOOLS, "book")
    assert speaker.says(wanted, speaker.calls(MONDAY))
    for text in (speaker.calls(("now", {})), speaker.calls(("book_repair", {"device": "x"})), "Hello"):
        assert not speaker.says(wanted, text), text


def test_text_or_strict_calls(speaker: Speaker) -> None:
    wanted = reply_constraint(speaker.template, TOOLS)
    texts = ["", "Hello", "a < b / c {}", speaker.calls(MONDAY), speaker.calls(("now", {"what": ["ever"]}))]
    bad = [speaker.calls(("book", {"day": "Sun"})), speaker.calls(("cook", {}))]
    if speaker.template.form == "hermes":
        texts += [f"I look.\n{speaker.calls(MONDAY)}", f"{speaker.calls(MONDAY)}\nDone."]
        bad += [f"I look.\n{speaker.calls(('book', {}))}", "What <tool_call> is that?"]
    else:
        bad.append(f"I look.\n{speaker.calls(MONDAY)}")
    for text in texts:
        assert speaker.says(wanted, text), text
        assert not speaker.template.read_text(text).problems
    for text in bad:
        assert not speaker.says(wanted, text), text


def test_nothing_asked_for(speaker: Speaker) -> None:
    for tools, choice in (([], "auto"), ([REPAIR, NOW], "auto"), (TOOLS, "none")):
        assert reply_constraint(speaker.template, tools, choice) is None


def test_json_beside_calls(speaker: Speaker) -> None:
    for tools, choice in (([], "auto"), (TOOLS, "none")):
        wanted = reply_constraint(speaker.template, tools, choice, FORMAT)
        assert speaker.says(wanted, '{"a": 1}') and speaker.says(wanted, '{\n  "a": 1\n}')
        assert not speaker.says(wanted, "Hello") and not speaker.says(wanted, speaker.calls(MONDAY))
    if speaker.name == "llama3":
        with pytest.raises(EngineError, match="begin as JSON does"):
            reply_constraint(speaker.template, TOOLS, "auto", FORMAT)
        return
    wanted = reply_constraint(speaker.template, [REPAIR], "auto", FORMAT)
    assert speaker.says(wanted, '{"a": 1}') and speaker.says(
        wanted, speaker.calls(("book_repair", {"any": 1}))
    )
    assert not speaker.says(wanted, "Hello") and not speaker.says(wanted, speaker.calls(MONDAY))


def test_thinking_comes_first_where_the_model_thinks(speaker: Speaker) -> None:
    thought = "<think>\nMonday < Tuesday?\n</think>\n\n"
    for choice, text in (("required", speaker.calls(MONDAY)), ("none", '{"a": 1}')):
        wanted = reply_constraint(speaker.template, TOOLS, choice, None if choice == "required" else FORMAT)
        assert speaker.says(wanted, text)
        assert speaker.says(wanted, thought + text) == (speaker.name == "qwen3")
        assert not speaker.says(wanted, thought)


def test_thinking_that_the_prompt_began() -> None:
    template = TEMPLATES["qwen3"]
    assert template is not None
    begun = template.replace(
        "<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    speaker = Speaker("begun", tokenizer(begun))
    wanted = reply_constraint(speaker.template, [], "auto", FORMAT)
    assert call_form(speaker.template).thinking == "begun"
    assert speaker.says(wanted, 'Well.\n</think>\n\n{"a": 1}') and not speaker.says(wanted, '{"a": 1}')


def test_tags_that_are_tokens() -> None:
    """Qwen's tokenizer writes a tag as one token, in a call and nowhere else."""
    made = tokenizer(TEMPLATES["qwen2.5"])
    made.add_tokens(["<tool_call>", "</tool_call>"])
    speaker = Speaker("tags", made)
    tag = made.convert_tokens_to_ids("<tool_call>")
    for choice in ("required", "auto"):
        wanted = reply_constraint(speaker.template, TOOLS, choice)
        ids = speaker.template.text.markup(speaker.calls(MONDAY))
        assert ids[0] == tag and speaker.says(wanted, speaker.calls(MONDAY))
        assert not speaker.says(wanted, speaker.calls(("book", {"day": "Sun"})))
    spelled = speaker.grammars.compile(reply_constraint(speaker.template, TOOLS), speaker.ends)  # type: ignore[arg-type]
    matcher, ids = (
        spelled.matcher(speaker.ends),
        speaker.template.text.plain("<tool_call") + speaker.template.text.plain("> no"),
    )
    matcher.follow(ids)
    assert matcher.taken < len(ids)  # a call begins there too


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([BOOK], "cook"), "tool_choice: no tool 'cook'"),
        (([], "required"), "tool_choice: no tool"),
        (([{"name": "f", "parameters": 5}], "required"), "tool 'f': parameters should be a JSON schema"),
        (
            ([{"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}], "required"),
            "tool 'f', at /properties/a: .*not",
        ),
        (([], "auto", {"uniqueItems": True}), "response_format, at its root: .*uniqueItems"),
    ],
)
def test_refused_by_name(speaker: Speaker, arguments: Any, error: str) -> None:
    with pytest.raises(EngineError, match=f"^{error}") as caught:
        reply_constraint(speaker.template, *arguments)
    assert "\n" not in str(caught.value)


def test_schemas_about_additional_properties_are_left_as_they_are(speaker: Speaker) -> None:
    silent = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for more, allowed in (({}, False), ({"additionalProperties": True}, True), ({"anyOf": [{}]}, True)):
        tool = {"name": "f", "parameters": {**silent, **more}}
        wanted = reply_constraint(speaker.template, [tool], "required")
        assert speaker.says(wanted, speaker.calls(("f", {"a": 1, "b": 2}))) == allowed, json.dumps(more)
