"""Messages to token ids, each message encoded alone, so that a conversation's ids only grow at the end.

Encoding the joined text again would break byte-pair boundaries (in Qwen2.5 ``?`` + newline is one token), and
some templates rewrite earlier messages (Qwen3 strips the thinking of earlier answers). Either would make a
prompt differ from the cached pages and token trees that hold its beginning. So the text that a chat template
adds for one message is encoded by itself, and `ChatFormat.check` tests on a synthetic dialogue whether the
template allows that.

A tokenizer without a chat template gets `PLAIN_TEMPLATE`: ``<|role|>``, newline, content, the tokenizer's end
token if it has one, newline; before the first message stands the begin token, if the tokenizer adds one.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proactor.engine.config_keys import CheckpointError
from proactor.engine.templates import Template, TemplateError
from proactor.engine.text import TextCodec, decode, tokenizer_faults
from proactor.engine.types import EngineError, one_line

Message = Mapping[str, Any]

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + (eos_token or "
    "'') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
FROZEN_DATE: Final = datetime.date(2026, 1, 1)
"""The date for templates that write today's: ids must not depend on the day on which a run is resumed."""

_USER: Final = {"role": "user", "content": "Wieland asks what is left to do?"}
_ANSWER: Final = {"role": "assistant", "content": "Two letters are waiting."}
_OTHER: Final = {"role": "user", "content": "And on Friday, is anything open?"}
_THOUGHT: Final = {"role": "assistant", "content": "<think>\nponder\n</think>\n\nTwo letters are waiting."}
_PLACEHOLDER: Final = "Wieland7194content"
"""Stands for a message's content where the text around it is wanted."""
_STRFTIME: Final = re.compile(r"""strftime_now\(\s*(['"])([^'"]*)\1\s*\)""")


class ChatError(EngineError):
    """A message or chat template that cannot be encoded."""


@dataclass(frozen=True, slots=True)
class ChatReport:
    """Properties of a chat template, from `ChatFormat.check`.

    appendable: a prompt that ends in a user message is a prefix of the conversation's later prompts (where it
    is not, callers build one tree a turn). keeps_samples: an answer sampled after the generation prompt is
    unchanged in later prompts (False where thinking is stripped or an empty thinking block comes and goes).
    exact: the ids equal those of the whole rendering. alternating: the template refuses a repeated role.
    dated: it writes a date, which is frozen. strips_thinking: it drops ``<think>`` blocks of earlier answers.
    roles: those it renders. problems: one line each, none when all is well.
    """

    appendable: bool
    keeps_samples: bool
    exact: bool
    alternating: bool
    dated: bool
    strips_thinking: bool
    roles: tuple[str, ...]
    problems: tuple[str, ...]


def load_tokenizer(folder: str | Path) -> Any | None:
    """The Hugging Face tokenizer of a model folder, from local files, or None when the folder has none.

    A tokenizer.json is loaded as it is. AutoTokenizer would choose a class by the model's architecture, and
    that class replaces the file's pre-tokenizer by its own: a Qwen2 model with another tokenizer would then
    get other ids than it was trained on. Raises CheckpointError naming the file for one that cannot be read.
    """
    place = Path(folder)
    files = [name for name in TOKENIZER_FILES if (place / name).exists()]
    if not files:
        return None
    for path in sorted(place.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: not a regular file")  # reading a pipe would wait for its writer
    import transformers  # takes a second: only when there is a tokenizer to load

    plain = files[0] == "tokenizer.json"
    kind = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    with tokenizer_faults(str(place / files[0])):
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def open_chat(tokenizer: Any, model: str) -> ChatFormat:
    """The `ChatFormat` of a tokenizer; its errors name the ``model``."""
    try:
        return ChatFormat(tokenizer)
    except EngineError as error:
        raise ChatError(f"{model}: {error}") from error


class ChatFormat:
    """A tokenizer's chat template as an append-only encoder.

    ``tokenizer`` is a Hugging Face tokenizer; ``template_kwargs`` go to the template
    (``enable_thinking=False`` for Qwen3). Raises ChatError if it cannot render a question and its answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        date: datetime.date = FROZEN_DATE,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.plain = not getattr(tokenizer, "chat_template", None)
        source = PLAIN_TEMPLATE if self.plain else _template(tokenizer)
        self._dated = "strftime_now" in source or "date_string" in source
        try:
            self._source = _STRFTIME.sub(lambda call: repr(date.strftime(call[2])), source)
            self._template = Template(self._source, chat=True)
        except ValueError as error:  # TemplateError, or a date that cannot be written in this form
            raise ChatError(f"the chat template: {one_line(error)}") from error
        self._date_string = date.strftime("%d %b %Y")
        with tokenizer_faults("the tokenizer's special tokens"):
            self._values = {**tokenizer.special_tokens_map, **(template_kwargs or {})}
        self._text = TextCodec(tokenizer)
        self._opening = self._text.opening if self.plain else ()  # a template writes its own begin token
        question, closed = self.render([_USER]), self.render([_USER, _ANSWER, _OTHER])
        close = self.render([_USER, _ANSWER]).rpartition(_ANSWER["content"])[2]
        self._question = question
        self._generation = _suffix(
            self.render([_USER], add_generation_prompt=True), question, "the generation prompt"
        )
        self._answered = closed[: closed.rfind(_ANSWER["content"])] + _ANSWER["content"] + close
        """A question and its answer as a later prompt holds them: the text before a later user message."""
        self._reply = closed.removeprefix(self._answered)
        self.generation_prompt_ids: tuple[int, ...] = tuple(self._text.markup(self._generation))
        """Ids that open an assistant message; empty where the template has none."""
        ids = self._text.markup(close)
        ends = max((i + 1 for i, token in enumerate(ids) if token in self._text.specials.values()), default=0)
        self.end_ids: tuple[int, ...] = tuple(ids[:ends])
        """Ids that close an assistant message, and are trained; empty when no special token ends it."""
        self.tail_ids: tuple[int, ...] = tuple(ids[ends:])
        """Ids that follow the end token (a newline in Qwen2.5): context for the next turn, never trained."""
        self.report = self.check()

    @property
    def appendable(self) -> bool:
        """Whether a later prompt of a conversation extends the earlier ones; see `ChatReport`."""
        return self.report.appendable

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """Ids of a conversation: message by message, or the whole rendering where not ``appendable``.

        Raises ChatError for no messages, a message without role or content, or one that the template renders
        differently beside these others.
        """
        if not messages:
            raise ChatError("a conversation without messages has no prompt")
        self._check_messages(messages)
        if not self.appendable:
            text = self.render(messages, add_generation_prompt=add_generation_prompt)
            if token := self._text.special_in([message["content"] for message in messages]):
                raise ChatError(
                    f"a message contains the special token {token!r}, which this chat template cannot hold "
                    "as text"
                )
            return [*self._opening, *self._text.markup(text)]
        self._check_roles([message["role"] for message in messages])
        pieces = [self._piece(message, first=i == 0) for i, message in enumerate(messages)]
        self._check_company(messages, pieces)
        ids = [
            token
            for i, (piece, message) in enumerate(zip(pieces, messages, strict=True))
            for token in self._piece_ids(piece, message, first=i == 0)
        ]
        return [*ids, *self.generation_prompt_ids] if add_generation_prompt else ids

    def encode_message(self, message: Message, first: bool = False) -> list[int]:
        """Ids of one message by itself.

        ``first`` includes what the template puts before a conversation (a begin token, a default system
        message). An assistant message is generation prompt, content, ``end_ids``, ``tail_ids``. Raises
        ChatError when the template is not ``appendable``.
        """
        if not self.appendable:
            raise ChatError("this chat template rewrites earlier messages: encode the conversation whole")
        self._check_messages([message])
        return self._piece_ids(self._piece(message, first), message, first)

    def encode_answer(self, content: str) -> list[int]:
        """Ids of an answer as the model would sample it, end ids included: for supervised examples."""
        return [*self._text.plain(content), *self.end_ids]

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text prompt: those of ``tokenizer(text)``, begin token included where it adds one.

        A special token's text stays text. Raises EngineError if this tokenizer cannot keep it so.
        """
        return [*self._text.opening, *self._text.plain(text), *self._text.closing]

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that follows other ids: `encode_text` without the begin token."""
        return self._text.plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without special tokens and without tidying of white space."""
        return decode(self.tokenizer, ids)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The template's text for a conversation, its date frozen. Raises ChatError when it refuses."""
        self._check_messages(messages)
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

    def check(self) -> ChatReport:
        """Try the template on a synthetic dialogue."""
        roles = tuple(role for role in ("system", "user", "assistant", "tool") if self._stands_alone(role))
        opening: list[Message] = [{"role": "system", "content": "Be brief."}] if "system" in roles else []
        dialogue = [
            *opening,
            _USER,
            _ANSWER,
            _OTHER,
            {"role": "assistant", "content": "Nothing: rest!"},
            _USER,
        ]
        prompts = [dialogue[:end] for end in range(len(opening) + 1, len(dialogue) + 1, 2)]
        appendable = {"user", "assistant"} <= set(roles)
        exact = False
        if appendable:
            pieces = [self._piece(message, first=i == 0) for i, message in enumerate(dialogue)]
            appendable = all("".join(pieces[: len(prompt)]) == self.render(prompt) for prompt in prompts)
            ids = [
                token
                for piece, message in zip(pieces, dialogue, strict=True)
                for token in self._piece_ids(piece, message)
            ]
            exact = appendable and ids == self._text.markup(self.render(dialogue))
        strips = "ponder" not in self.render([_USER, _THOUGHT, _OTHER])
        keeps = (
            appendable
            and not strips
            and self._answered.startswith(self._question + self._generation + _ANSWER["content"])
        )
        problems = []
        if not appendable:
            problems.append("earlier prompts are not prefixes of later ones: one tree a turn")
        if appendable and not keeps:
            problems.append("a sampled answer does not stand unchanged in later prompts")
        if appendable and not exact:
            problems.append(
                "the tokenizer merges across messages: "
                "ids differ from those of the conversation encoded whole"
            )
        if not self.end_ids:
            problems.append("there is no special token that ends an answer")
        if "strftime_now(" in self._source:
            problems.append("the template writes today's date in a way that cannot be frozen")
        return ChatReport(
            appendable=appendable,
            keeps_samples=keeps,
            exact=exact,
            alternating=not self._accepts([_USER, _OTHER]),
            dated=self._dated,
            strips_thinking=strips,
            roles=roles,
            problems=tuple(problems),
        )

    def _piece(self, message: Message, first: bool = False) -> str:
        """The text that the template adds for one message; an answer as it is between two user messages."""
        if message.get("role") == "assistant":
            before, stub = ([], "") if first else ([_USER], self._question)
            text = _suffix(self.render([*before, message, _OTHER]), stub, "an assistant message")
            if not text.endswith(self._reply):
                raise ChatError("the chat template changes an answer when a question follows")
            return text.removesuffix(self._reply)
        if first:
            return self.render([message])
        return _suffix(
            self.render([_USER, _ANSWER, message]), self._answered, f"a {message.get('role')} message"
        )

    def _piece_ids(self, piece: str, message: Message, first: bool = False) -> list[int]:
        lead = self._opening if first else ()
        prompted = message["role"] == "assistant" and self._generation and piece.startswith(self._generation)
        if prompted:
            # Cut where sampling begins: an answer that starts with white space must not merge with the
            # generation prompt's newline.
            lead, piece = (*lead, *self.generation_prompt_ids), piece.removeprefix(self._generation)
        content = message["content"]
        if self._text.special_in(content) is None:
            return [*lead, *self._text.markup(piece)]
        frame = self._piece({**message, "content": _PLACEHOLDER}, first)
        head, placeholder, tail = frame.removeprefix(self._generation if prompted else "").partition(
            _PLACEHOLDER
        )
        for text in (content, content.strip()):
            if placeholder and piece == head + text + tail:
                return [*lead, *self._text.markup(head), *self._text.plain(text), *self._text.markup(tail)]
        raise ChatError(
            f"a {message['role']} message contains a special token, and the chat template rewrites its text"
        )

    def _check_messages(self, messages: Sequence[Message]) -> None:
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise ChatError(f"message {i + 1}: should be a mapping with 'role' and 'content'")
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise ChatError(
                    f"message {i + 1}: 'role' and 'content' must be strings, got {str(dict(message))[:120]}"
                )
            others = {key: value for key, value in message.items() if key != "content"}
            if token := self._text.special_in(others):
                raise ChatError(
                    f"message {i + 1}: only 'content' can hold the special token {token!r} as text"
                )

    def _check_roles(self, roles: Sequence[str]) -> None:
        for i, role in enumerate(roles):
            if role not in self.report.roles:
                raise ChatError(
                    f"message {i + 1}: this chat template has no {role!r} message that stands alone"
                )
            if i and role == roles[i - 1] and self.report.alternating:
                raise ChatError(
                    f"message {i + 1}: {role!r} follows {role!r}, which this chat template refuses; join "
                    "the two"
                )

    def _check_company(self, messages: Sequence[Message], pieces: Sequence[str]) -> None:
        """Compare with the whole rendering where `check` did not try the roles (repeated ones, tools)."""
        roles = [message["role"] for message in messages]
        if "tool" not in roles and all(a != b for a, b in itertools.pairwise(roles)):
            return
        company = messages if roles[-1] == "user" else [*messages, _OTHER]
        if self.render(company) != "".join(pieces) + (self._reply if company is not messages else ""):
            raise ChatError(
                f"this chat template renders the roles {roles} differently together than one by one"
            )

    def _accepts(self, messages: Sequence[Message]) -> bool:
        try:
            self.render(messages)
        except ChatError:
            return False
        return True

    def _stands_alone(self, role: str) -> bool:
        """Whether messages of this role add a text of their own (a system message only at the beginning)."""
        message = {"role": role, "content": "Be brief."}
        try:
            piece = self._piece(message, first=role == "system")
            return role != "system" or self.render([message, _USER]) == piece + self._piece(_USER)
        except ChatError:
            return False


def _suffix(text: str, stub: str, what: str) -> str:
    if not text.startswith(stub):
        raise ChatError(f"the chat template rewrites earlier messages when {what} follows")
    return text.removeprefix(stub)


def _template(tokenizer: Any) -> str:
    # as for several, none of them called "default"
    with tokenizer_faults("the tokenizer's chat templates", ChatError):
        source: object = tokenizer.get_chat_template()
    if not isinstance(source, str):
        raise ChatError(f"the chat template: should be a text, not {source!r:.60}")
    return source
