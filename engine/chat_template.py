"""A chat template as text: of a conversation, and what each message adds to it.

Dates are frozen: ids must not depend on the day on which a run is resumed.

A tokenizer without a chat template gets `PLAIN_TEMPLATE`: ``<|role|>``, newline, content, the tokenizer's end
token if it has one, newline.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from proactor.engine.templates import Template, TemplateError
from proactor.engine.text import TextCodec, tokenizer_faults
from proactor.engine.types import EngineError, one_line

Message = Mapping[str, Any]

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + (eos_token or "
    "'') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FROZEN_DATE: Final = datetime.date(2026, 1, 1)
"""The date for templates that write today's."""

USER: Final = {"role": "user", "content": "Wieland asks what is left to do?"}
ANSWER: Final = {"role": "assistant", "content": "Two letters are waiting."}
OTHER: Final = {"role": "user", "content": "And on Friday, is anything open?"}
_THOUGHT: Final = {"role": "assistant", "content": "<think>\nponder\n</think>\n\nTwo letters are waiting."}
_STRFTIME: Final = re.compile(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


class ChatError(EngineError):
    """A message or chat template that cannot be encoded."""


class ChatTemplate:
    """A tokenizer's chat template. Raises ChatError if it cannot render a question and its answer.

    ``values`` go to the template. Attributes: ``plain`` (it is `PLAIN_TEMPLATE`), ``dated`` (it writes a
    date), ``frozen`` (always the same one), ``generation`` (text that opens an assistant message; empty where
    there is none), ``closing`` (text that follows an answer's content at the end of a conversation),
    ``codec`` (the tokenizer's, which knows its special tokens).
    """

    def __init__(self, tokenizer: Any, date: datetime.date, values: Mapping[str, Any]) -> None:
        self.plain = not getattr(tokenizer, "chat_template", None)
        source = PLAIN_TEMPLATE if self.plain else _source(tokenizer)
        self.dated = "strftime_now" in source or "date_string" in source
        try:
            source = _STRFTIME.sub(lambda call: repr(date.strftime(call[2])), source)
            self._template = Template(source, chat=True)
        except ValueError as error:  # TemplateError, or a date that cannot be written in this form
            raise ChatError(f"the chat template: {one_line(error)}") from error
        self.frozen = "strftime_now(" not in source
        self._date_string = date.strftime("%d %b %Y")
        with tokenizer_faults("the tokenizer's special tokens"):
            self._values = {**tokenizer.special_tokens_map, **values}
        self.codec = TextCodec(tokenizer)
        content = ANSWER["content"]
        self._question, closed = self.render([USER]), self.render([USER, ANSWER, OTHER])
        self.closing = self.render([USER, ANSWER]).rpartition(content)[2]
        self.generation = _suffix(
            self.render([USER], add_generation_prompt=True), self._question, "the generation prompt"
        )
        self._answered = closed[: closed.rfind(content)] + content + self.closing
        """A question and its answer as a later prompt holds them: the text before a later user message."""
        self._reply = closed.removeprefix(self._answered)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The template's text for a conversation, its date frozen. Raises ChatError when it refuses."""
        self.check_messages(messages)
        return self.fill(messages, add_generation_prompt)

    def fill(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """`render`, for messages and tool definitions of any form that the template takes."""
        values = {"tools": tools or None, "documents": None, "date_string": self._date_string, **self._values}
        values["messages"] = [{k: v for k, v in m.items() if v is not None} for m in messages]
        values["add_generation_prompt"] = add_generation_prompt
        try:
            return self._template.render(**values)
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ChatError(f"the chat template refuses the roles {roles}: {error}") from error

    def piece(self, message: Message, first: bool = False) -> str:
        """The text that the template adds for one message; an answer as it is between two user messages."""
        if message.get("role") == "assistant":
            before, stub = ([], "") if first else ([USER], self._question)
            text = _suffix(self.render([*before, message, OTHER]), stub, "an assistant message")
            if not text.endswith(self._reply):
                raise ChatError("the chat template changes an answer when a question follows")
            return text.removesuffix(self._reply)
        if first:
            return self.render([message])
        return _suffix(
            self.render([USER, ANSWER, message]), self._answered, f"a {message.get('role')} message"
        )

    def check_messages(self, messages: Sequence[Message]) -> None:
        """Raise ChatError for a message without role or content, or with a special token beside them."""
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ChatError(f"message {i + 1}: should be a mapping with 'role' and 'content'")
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise ChatError(
                    f"message {i + 1}: 'role' and 'content' must be strings, got {str(dict(message))[:120]}"
                )
            others = {key: value for key, value in message.items() if key != "content"}
            if token := self.codec.special_in(others):
                raise ChatError(
                    f"message {i + 1}: only 'content' can hold the special token {token!r} as text"
                )

    def check_company(self, messages: Sequence[Message], pieces: Sequence[str]) -> None:
        """Raise ChatError where ``pieces`` are not the whole rendering, for roles that `ChatFormat.check` did
        not try (repeated ones, tools).
        """
        roles = [message["role"] for message in messages]
        if "tool" not in roles and all(a != b for a, b in itertools.pairwise(roles)):
            return
        company = messages if roles[-1] == "user" else [*messages, OTHER]
        if self.render(company) != "".join(pieces) + (self._reply if company is not messages else ""):
            raise ChatError(
                f"this chat template renders the roles {roles} differently together than one by one"
            )

    def accepts(self, messages: Sequence[Message]) -> bool:
        """Whether the template renders these messages."""
        try:
            self.render(messages)
        except ChatError:
            return False
        return True

    def stands_alone(self, role: str) -> bool:
        """Whether messages of this role add a text of their own (a system message only at the beginning)."""
        message = {"role": role, "content": "Be brief."}
        try:
            piece = self.piece(message, first=role == "system")
            return role != "system" or self.render([message, USER]) == piece + self.piece(USER)
        except ChatError:
            return False

    def keeps_answers(self) -> bool:
        """Whether an answer drawn after the generation prompt stands in later prompts as it was drawn."""
        return self._answered.startswith(self._question + self.generation + ANSWER["content"])

    def strips_thinking(self) -> bool:
        """Whether it drops ``<think>`` blocks of earlier answers."""
        return "ponder" not in self.render([USER, _THOUGHT, OTHER])


def _suffix(text: str, stub: str, what: str) -> str:
    if not text.startswith(stub):
        raise ChatError(f"the chat template rewrites earlier messages when {what} follows")
    return text.removeprefix(stub)


def _source(tokenizer: Any) -> str:
    # as for several, none of them called "default"
    with tokenizer_faults("the tokenizer's chat templates", ChatError):
        source: object = tokenizer.get_chat_template()
    if not isinstance(source, str):
        raise ChatError(f"the chat template: should be a text, not {source!r:.60}")
    return source
