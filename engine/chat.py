"""Messages to token ids, each message encoded alone, so that a conversation's ids only grow at the end.

Encoding the joined text again would break byte-pair boundaries (in Qwen2.5 ``?`` + newline is one token), and
some templates rewrite earlier messages (Qwen3 strips the thinking of earlier answers). Either would make a
prompt differ from the cached pages and token trees that hold its beginning. So the text that a chat template
adds for one message (`chat_template.py`) is encoded by itself, and `ChatFormat.check` tests on a synthetic
dialogue whether the template allows that.

Where a tokenizer has no chat template, its begin token, if it adds one, stands before the first message.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proactor.engine.chat_template import ANSWER, FROZEN_DATE, OTHER, USER, ChatError, ChatTemplate, Message
from proactor.engine.text import decode
from proactor.engine.types import EngineError

_PLACEHOLDER: Final = "Wieland7194content"
"""Stands for a message's content where the text around it is wanted."""


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


def open_chat(tokenizer: Any, model: str, eos_ids: Iterable[int] = ()) -> ChatFormat:
    """The `ChatFormat` of a tokenizer; its errors name the ``model``."""
    try:
        return ChatFormat(tokenizer, eos_ids=eos_ids)
    except EngineError as error:
        raise ChatError(f"{model}: {error}") from error


class ChatFormat:
    """A tokenizer's chat template as an append-only encoder.

    ``tokenizer`` is a Hugging Face tokenizer; ``template_kwargs`` go to the template
    (``enable_thinking=False`` for Qwen3). ``eos_ids``: at which a model's samples end, beside the tokenizer's
    own end token. Raises ChatError if it cannot render a question and its answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        date: datetime.date = FROZEN_DATE,
        template_kwargs: Mapping[str, Any] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        own: int | None = getattr(tokenizer, "eos_token_id", None)
        self.eos_ids = frozenset(eos_ids) | (frozenset() if own is None else {own})
        """Ids at which a sample ends, whatever the template writes."""
        self._template = ChatTemplate(tokenizer, date, template_kwargs or {})
        self._text = self._template.codec
        self._generation = self._template.generation
        self._opening = self._text.opening if self.plain else ()  # a template writes its own begin token
        self.generation_prompt_ids: tuple[int, ...] = tuple(self._text.markup(self._generation))
        """Ids that open an assistant message; empty where the template has none."""
        ids = self._text.markup(self._template.closing)
        ends = max((i + 1 for i, token in enumerate(ids) if token in self._text.specials.values()), default=0)
        self.end_ids: tuple[int, ...] = tuple(ids[:ends])
        """Ids that close an assistant message, and are trained; empty when no special token ends it."""
        self.tail_ids: tuple[int, ...] = tuple(ids[ends:])
        """Ids that follow the end token (a newline in Qwen2.5): context for the next turn, never trained."""
        self.report = self.check()

    @property
    def plain(self) -> bool:
        """Whether the tokenizer has no chat template of its own."""
        return self._template.plain

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
        self._template.check_messages(messages)
        if not self.appendable:
            text = self.render(messages, add_generation_prompt=add_generation_prompt)
            if token := self._text.special_in([message["content"] for message in messages]):
                raise ChatError(
                    f"a message contains the special token {token!r}, which this chat template cannot hold "
                    "as text"
                )
            return [*self._opening, *self._text.markup(text)]
        self._check_roles([message["role"] for message in messages])
        pieces = [self._template.piece(message, first=i == 0) for i, message in enumerate(messages)]
        self._template.check_company(messages, pieces)
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
        self._template.check_messages([message])
        return self._piece_ids(self._template.piece(message, first), message, first)

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
        return self._template.render(messages, add_generation_prompt)

    def fill(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """`render`, for messages and tool definitions of any form that the template takes."""
        return self._template.fill(messages, add_generation_prompt, tools)

    def check(self) -> ChatReport:
        """Try the template on a synthetic dialogue."""
        roles = tuple(
            role for role in ("system", "user", "assistant", "tool") if self._template.stands_alone(role)
        )
        opening: list[Message] = [{"role": "system", "content": "Be brief."}] if "system" in roles else []
        dialogue = [
            *opening,
            USER,
            ANSWER,
            OTHER,
            {"role": "assistant", "content": "Nothing: rest!"},
            USER,
        ]
        prompts = [dialogue[:end] for end in range(len(opening) + 1, len(dialogue) + 1, 2)]
        appendable = {"user", "assistant"} <= set(roles)
        exact = False
        if appendable:
            pieces = [self._template.piece(message, first=i == 0) for i, message in enumerate(dialogue)]
            appendable = all("".join(pieces[: len(prompt)]) == self.render(prompt) for prompt in prompts)
            ids = [
                token
                for piece, message in zip(pieces, dialogue, strict=True)
                for token in self._piece_ids(piece, message)
            ]
            exact = appendable and ids == self._text.markup(self.render(dialogue))
        strips = self._template.strips_thinking()
        keeps = appendable and not strips and self._template.keeps_answers()
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
        if not self._template.frozen:
            problems.append("the template writes today's date in a way that cannot be frozen")
        return ChatReport(
            appendable=appendable,
            keeps_samples=keeps,
            exact=exact,
            alternating=not self._template.accepts([USER, OTHER]),
            dated=self._template.dated,
            strips_thinking=strips,
            roles=roles,
            problems=tuple(problems),
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
        frame = self._template.piece({**message, "content": _PLACEHOLDER}, first)
        head, placeholder, tail = frame.removeprefix(self._generation if prompted else "").partition(
            _PLACEHOLDER
        )
        for text in (content, content.strip()):
            if placeholder and piece == head + text + tail:
                return [*lead, *self._text.markup(head), *self._text.plain(text), *self._text.markup(tail)]
        raise ChatError(
            f"a {message['role']} message contains a special token, and the chat template rewrites its text"
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
