"""Grammars of replies: calls as a chat template writes them, text or JSON beside them, thinking before.

What is around a call's name and arguments is read off the template itself, so that a reply is written as the
model was taught, and read back by `ToolTemplate.read`. Arguments keep to the tool's ``parameters``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from proactor.engine.chat_messages import read_tools
from proactor.engine.chat_template import ChatError
from proactor.engine.constraint import Constraint
from proactor.engine.grammars import check_schema, json_rule
from proactor.engine.tool_template import ToolTemplate, probe_call

OBJECT: Final = {"type": "object"}
_NAME: Final = "look_up_letters"
_THINK, _THOUGHT, _TAG = "<think>", "</think>", "<tool_call>"
_ANY: Final = "(?s:.*)"
_CALL_LIKE: Final = r'\{\s*"(name|type|function|parameters|arguments)"'
"""What begins a call in text, in the form ``llama3`` (`tool_calls`)."""
_JOINED: Final = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties", "additionalProperties", "if")
"""Keywords beside which additional properties are left to the schema."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a template writes before a call's name, between name and arguments, and after them.

    ``between``: from the arguments of a call to the name of the next; None where there is one call at most.
    ``thinking``: "" (none), "may" begin a reply, or was "begun" by the generation prompt.
    """

    before: str
    middle: str
    after: str
    between: str | None
    thinking: str


@lru_cache(maxsize=8)
def call_form(template: ToolTemplate) -> CallForm:
    """How a template writes calls. Raises ChatError where name and arguments cannot be found in them."""
    days = ("Friday", "Sunday")
    text, [(name, start, end)] = _written(template, days[:1])
    try:
        more, [_, (second, _, _)] = _written(template, days)
        between = more[more.index("}", more.index(days[0])) + 1 : second]
    except ChatError:
        between = None  # the template takes one call at once
    opened = template.prompt.rstrip().endswith(_THINK)
    thinking = "begun" if opened else "may" * (template.thinks and template.chat.report.strips_thinking)
    before = text[:name].rpartition(_THOUGHT)[2].lstrip("\n")
    return CallForm(before, text[name + len(_NAME) : start], text[end:], between, thinking)


def _written(template: ToolTemplate, days: Sequence[str]) -> tuple[str, list[tuple[int, int, int]]]:
    """Calls as the template writes them, without the end token; for each the places of name and arguments."""
    calls = [call for day in days for call in probe_call(day)["tool_calls"]]
    text = template.answer({"role": "assistant", "content": "", "tool_calls": calls}).text
    text = text.removesuffix(template.call_end)
    places = []
    for day in days:
        arguments = re.search(rf'\{{\s*"day"\s*:\s*"{day}"\s*\}}', text)
        name = text.rfind(_NAME, 0, arguments.start()) if arguments else -1
        if arguments is None or name < 0:
            raise ChatError("this chat template writes calls in a form that cannot be kept to")
        places.append((name, arguments.start(), arguments.end()))
    return text, places


def reply_constraint(
    template: ToolTemplate,
    tools: Any,
    choice: str = "auto",
    schema: Mapping[str, Any] | bool | None = None,
    parallel: bool = True,
) -> Constraint | None:
    """What a reply must be; None for anything.

    ``choice``: ``required`` for one call or more (one, where not ``parallel``), ``none`` for none, ``auto``
    for calls or text, or a tool's name for one call of it. ``schema``: of the text, where that must be JSON.
    With ``auto`` calls are kept to if a tool says ``strict``; the arguments of the others are then any
    object. Raises EngineError for a schema that cannot be kept to, with its place, and for an unknown tool.
    """
    listed = [tool["function"] for tool in read_tools(tools)] if choice != "none" else []
    free = choice == "auto"
    if choice not in ("auto", "none", "required"):
        listed = [tool for tool in listed if tool["name"] == choice]
        parallel = False
    if not listed and not free and choice != "none":
        raise ChatError(f"tool_choice: {'no tool' if choice == 'required' else f'no tool {choice!r}'}")
    if schema is not None:
        check_schema(schema, "response_format")
    if free and schema is None and not any(tool.get("strict") for tool in listed):
        return None
    if not listed and schema is None:
        return None
    writer = _Writer(template, free)
    if schema is not None and listed and writer.form.before.startswith("{"):
        raise ChatError("response_format with tools: the calls of this chat template begin as JSON does")
    if schema is not None:
        writer.json(schema)
    elif free:
        writer.text()
    if listed:
        writer.calls(listed, parallel)
    return Constraint(grammar=writer.grammar())


class _Writer:
    """Writes the rules of a reply. ``free``: calls are not asked for, but possible."""

    def __init__(self, template: ToolTemplate, free: bool) -> None:
        self.template, self.form, self.free = template, call_form(template), free
        added = getattr(template.chat.tokenizer, "added_tokens_decoder", {})
        self.added = template.text.specials | {str(token): int(i) for i, token in added.items()}
        """Texts that the tokenizer writes as one token wherever they stand, and those tokens."""
        self.kinds: list[str] = []
        self.rules: list[str] = []

    def grammar(self) -> str:
        """The whole."""
        thought = {"": "", "may": "thinking? ", "begun": "thought "}[self.form.thinking]
        head = ["%llguidance {}", f"start: {thought}reply", f"reply: {' | '.join(self.kinds)}"]
        head.append(f"ANY: /{_ANY}/")
        if thought:
            self.lazily("thought_end", _THOUGHT)
            newlines = r'("\n" "\n"?)?'
            self.rules += [f"thinking: {self.literal(_THINK)} thought", f"thought: thought_end {newlines}"]
        return "\n".join([*head, *self.rules])

    def json(self, schema: Mapping[str, Any] | bool) -> None:
        """The reply may be JSON."""
        self.kinds.append("json")
        self.rules.append(f"json: {json_rule(schema)}")

    def text(self) -> None:
        """The reply may be text. Where it says what is read as a call, a call follows."""
        if self.template.form == "hermes":
            self.kinds.append("texts")
            self.lazily("lead", _TAG)
            rest = self.literal(self.form.before.partition(_TAG)[2])
            self.rules.append(f"texts: (lead {rest} called)* ANY")
        else:
            self.kinds.append("TEXT")
            self.rules.append(f"TEXT: /{_ANY}/ & ~/{_ANY}{_CALL_LIKE}{_ANY}/")

    def calls(self, tools: Sequence[Mapping[str, Any]], parallel: bool) -> None:
        """The reply may be calls."""
        form, again = self.form, ""
        if "texts" not in self.kinds:  # where a further call is one more piece of the text
            if parallel and form.between is not None:
                again = f"({self.literal(form.between)} one)* "
            self.kinds.append("calls")
            self.rules.append(f"calls: {self.literal(form.before)} called")
        self.rules.append(f"called: one {again}{self.literal(form.after)}")
        self.rules.append(f"one: {' | '.join(f'call_{i}' for i in range(len(tools)))}")
        for i, tool in enumerate(tools):
            name = json.dumps(json.dumps(tool["name"], ensure_ascii=False)[1:-1], ensure_ascii=False)
            schema = OBJECT if self.free and not tool.get("strict") else arguments_schema(tool)
            check_schema(schema, f"tool {tool['name']!r}")
            self.rules += [
                f"call_{i}: {name} {self.literal(form.middle)} arguments_{i}",
                f"arguments_{i}: {json_rule(schema)}",
            ]

    def lazily(self, rule: str, end: str) -> None:
        """A rule: any text up to the first ``end``, spelled or as the token that it may be."""
        token = f"ANY {self.literal(end)} | " if end in self.added else ""
        self.rules += [f"{rule}: {token}{rule}_text", f"{rule}_text[lazy]: /{_ANY}{_in_regex(end)}/"]

    def literal(self, text: str) -> str:
        """A text as a part of a rule, with the tokens that the tokenizer would write."""
        pattern = "|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) or r"(?!)"
        pieces = re.split(f"({pattern})", text)
        return " ".join(
            f"<[{self.added[piece]}]>" if i % 2 else json.dumps(piece, ensure_ascii=False)
            for i, piece in enumerate(pieces)
            if piece
        )


def arguments_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments. Without ``parameters`` there are none, and where the schema is silent
    about additional ones there are none either: no tool could take them.
    """
    parameters = tool.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ChatError(f"tool {tool['name']!r}: parameters should be a JSON schema, not {parameters!r:.60}")
    if "properties" in parameters and not any(key in parameters for key in _JOINED):
        parameters = {**parameters, "additionalProperties": False}
    return parameters


def _in_regex(text: str) -> str:
    return re.escape(text).replace("/", "\\/")
