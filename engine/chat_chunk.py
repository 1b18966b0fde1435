"""A chat completion in chunks, with the names and fields of ``openai.types.chat.ChatCompletionChunk``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from proactor.engine.chat_completion import (
    ChatCompletionMessageToolCall,
    Choice,
    ChoiceLogprobs,
    CompletionUsage,
    FinishReason,
    Record,
    fingerprint,
)
from proactor.engine.chat_request import ChatRequest
from proactor.engine.drawing import Piece
from proactor.engine.types import BASE_VERSION, Sample, Tops


class ChoiceDeltaToolCall(ChatCompletionMessageToolCall):
    """A call of a tool, whole; ``index``: its place in the message."""

    index: int


class ChoiceDelta(Record):
    """What a message gained."""

    content: str | None = None
    role: Literal["assistant"] | None = None
    tool_calls: list[ChoiceDeltaToolCall] | None = None
    reasoning_content: str | None = None


class ChunkChoice(Record):
    """What an answer gained."""

    delta: ChoiceDelta
    index: int
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    token_ids: list[int]


class ChatCompletionChunk(Record):
    """A part of a completion. ``prompt_token_ids``: in the first chunk; ``usage``: in the last one."""

    id: str
    choices: list[ChunkChoice]
    created: int
    model: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    prompt_token_ids: list[int] | None = None
    system_fingerprint: str | None = None
    policy_version: int = BASE_VERSION
    usage: CompletionUsage | None = None


class ChatChunks:
    """The chunks of one completion.

    ``choice`` reads a sample that ended, ``logprobs`` shows tokens: those of the client.
    """

    def __init__(
        self,
        request: ChatRequest,
        prompt_ids: list[int],
        choice: Callable[[ChatRequest, int, Sample], Choice],
        logprobs: Callable[[Sequence[int], Sequence[float], Tops], ChoiceLogprobs],
    ) -> None:
        self._request, self._prompt_ids = request, prompt_ids
        self._choice, self._logprobs = choice, logprobs
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._begun: set[int] = set()
        self._adapter: str | None = None
        self._version = BASE_VERSION

    def of(self, piece: Piece) -> ChatCompletionChunk | None:
        """The chunk of a piece; None where there is nothing to tell yet."""
        whole, first, new = self._request.reads_calls, not self._begun, piece.index not in self._begun
        if whole and not new and not piece.last:  # what it calls is known when it ends
            return None
        self._begun.add(piece.index)
        self._adapter, self._version = piece.sample.adapter, piece.sample.policy_version
        start, end = (0, piece.end if piece.last else 0) if whole else (piece.start, piece.end)
        delta = ChoiceDelta(content="" if whole else piece.text, role="assistant" if new else None)
        reason = None
        if piece.last:
            choice = self._choice(self._request, piece.index, piece.sample)
            reason = choice.finish_reason
            if whole:
                delta = delta.model_copy(update=_message(choice))
        shown = replace(piece, start=start, end=end)
        part = ChunkChoice(
            delta=delta,
            index=piece.index,
            finish_reason=reason,
            logprobs=self._logprobs(shown.token_ids, shown.logprobs, shown.tops)
            if self._request.logprobs
            else None,
            token_ids=shown.token_ids,
        )
        return self._chunk([part], self._prompt_ids if first else None, None)

    def end(self, usage: CompletionUsage) -> ChatCompletionChunk:
        """The last chunk."""
        return self._chunk([], None, usage)

    def _chunk(
        self, choices: list[ChunkChoice], prompt_ids: list[int] | None, usage: CompletionUsage | None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            choices=choices,
            created=self._created,
            model=self._request.model,
            prompt_token_ids=prompt_ids,
            system_fingerprint=fingerprint(self._adapter, self._version),
            policy_version=self._version,
            usage=usage,
        )


def _message(choice: Choice) -> dict[str, Any]:
    """A whole message, as fields of a delta."""
    calls = [
        ChoiceDeltaToolCall(index=i, **call.model_dump())
        for i, call in enumerate(choice.message.tool_calls or ())
    ]
    return {
        "content": choice.message.content,
        "reasoning_content": choice.message.reasoning_content,
        "tool_calls": calls or None,
    }
