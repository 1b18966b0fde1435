"""``/v1/completions``: OpenAI's text completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from proactor.engine import Group, Piece, Sample, TokenOffsets, Tops
from proactor.server.answering import answered, drawing, finish_reason, in_time, respond, usage_of
from proactor.server.completion_request import CompletionRequest
from proactor.server.options import AnswerOptions
from proactor.server.refusals import Refused
from proactor.server.serving import Serving

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Completions of one or more prompts, or their pieces."""
    serving = Serving.of(request)
    fields = await serving.fields(request)
    options = AnswerOptions.take(fields)
    asked = CompletionRequest.of(fields)
    if options.stream and asked.drawn > asked.n:
        raise Refused(400, "best_of beyond n: not with stream, as the best are known at the end alone")
    prompts = asked.prompts()
    asked = serving.within_limits(asked, len(prompts) * asked.drawn)
    answer = _Completions(serving, asked, prompts, options)
    return await respond(serving, request, asked.model, answer, options.stream)


class _Completions:
    """The answer to a request."""

    def __init__(
        self, serving: Serving, asked: CompletionRequest, prompts: list[Any], options: AnswerOptions
    ) -> None:
        self._serving, self._asked, self._prompts, self._options = serving, asked, prompts, options
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._offsets: dict[int, TokenOffsets] = {}

    async def whole(self, adapter: bool | str) -> dict[str, Any]:
        groups = await answered(await drawing(self._serving.engine, self._prompts, self._asked, adapter))
        usage = usage_of(self._serving, groups)
        return await asyncio.to_thread(self._whole, groups, usage)

    def _whole(self, groups: Sequence[Group], usage: dict[str, int]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for group in groups:
            for sample in _best(group.samples, self._asked.n):
                text = self._echo(len(choices)) + sample.text
                logprobs, tops = sample.policy_logprobs, sample.token_tops()
                choice = self._choice(len(choices), text, sample.token_ids, logprobs, tops)
                choice["finish_reason"] = finish_reason(sample)
                if self._options.return_token_ids:
                    choice["prompt_token_ids"] = group.prompt_ids
                choices.append(choice)
        return self._body(choices, groups[0].samples[0].policy_version, usage)

    async def events(self, adapter: bool | str) -> AsyncGenerator[dict[str, Any], None]:
        version = 0
        async with await drawing(self._serving.engine, self._prompts, self._asked, adapter) as drawn:
            async for piece in drawn.pieces():
                if piece.sample.finish_reason == "deadline":
                    continue
                version = piece.sample.policy_version
                yield self._body([self._piece(piece)], version, None)
            groups = in_time(await drawn.groups())
        usage = usage_of(self._serving, groups)
        if self._options.include_usage:
            yield self._body([], version, usage)

    def _body(
        self, choices: list[dict[str, Any]], version: int, usage: dict[str, int] | None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
            "policy_version": version,
        }
        return body if usage is None else {**body, "usage": usage}

    def _piece(self, piece: Piece) -> dict[str, Any]:
        """A piece as the choice of an event."""
        text = (self._echo(piece.index) if piece.start == 0 else "") + piece.text
        choice = self._choice(piece.index, text, piece.token_ids, piece.logprobs, piece.tops)
        choice["finish_reason"] = finish_reason(piece.sample) if piece.last else None
        if self._options.return_token_ids and piece.start == 0:
            choice["prompt_token_ids"] = piece.sample.prompt_ids
        return choice

    def _choice(
        self, index: int, text: str, ids: list[int], logprobs: Sequence[float], tops: Tops
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if self._asked.logprobs is not None:
            choice["logprobs"] = {
                "tokens": list(map(self._token, ids)),
                "token_logprobs": list(logprobs),
                "top_logprobs": [self._near(*drawn) for drawn in zip(ids, logprobs, tops, strict=True)]
                if self._asked.logprobs
                else None,
                "text_offset": self._text_offsets(index, ids),
            }
        if self._options.return_token_ids:
            choice["token_ids"] = ids
        return choice

    def _near(self, token: int, logprob: float, tops: list[tuple[int, float]]) -> dict[str, float]:
        """The most probable tokens by their texts, and the drawn one; of equal texts the more probable."""
        near: dict[str, float] = {}
        for other, value in (*tops, (token, logprob)):
            near.setdefault(self._token(other), value)
        return near

    def _echo(self, index: int) -> str:
        """The text of a choice's prompt, where it is asked for."""
        prompt = self._prompts[index // self._asked.n]
        if not self._asked.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._text(prompt)

    def _token(self, token: int) -> str:
        texts = self._serving.texts
        return self._options.token(token, "" if texts is None else texts.text(token))

    def _text_offsets(self, index: int, ids: list[int]) -> list[int]:
        """Where further tokens of a choice begin in its text."""
        texts = self._serving.texts
        if texts is None:
            return [0] * len(ids)
        return self._offsets.setdefault(index, TokenOffsets(texts)).take(ids)

    def _text(self, ids: list[int]) -> str:
        tokenizer = self._serving.engine.tokenizer
        text: str = tokenizer.decode(ids) if tokenizer is not None else ""
        return text


def _best(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    """``count`` of the samples: all as they come, or of more those of the highest mean log-probability."""
    if len(samples) == count:
        return samples
    return sorted(samples, key=lambda s: -sum(s.policy_logprobs) / max(1, len(s.token_ids)))[:count]
