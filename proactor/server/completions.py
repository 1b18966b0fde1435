"""``/v1/completions``: OpenAI's text completions."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from proactor.engine import Drawing, Engine, Group, Piece, RequestTimeout, Sample
from proactor.server.completion_request import CompletionRequest, GenerateRequest
from proactor.server.events import EventStream
from proactor.server.options import AnswerOptions
from proactor.server.refusals import as_json
from proactor.server.serving import Serving

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Completions of one or more prompts, or their pieces."""
    serving = Serving.of(request)
    fields = await serving.fields(request)
    options = AnswerOptions.take(fields)
    asked = CompletionRequest.of(fields)
    prompts = asked.prompts()
    asked = serving.within_limits(asked, len(prompts) * asked.n)
    form = _Form(serving.engine, asked, options)
    if options.stream:
        return EventStream(serving, request, _pieces(serving, form, prompts))
    async with serving.place(request), serving.models.use(asked.model) as adapter:
        groups = await answered(await drawing(serving.engine, prompts, asked, adapter))
    usage = usage_of(serving, groups)
    choices: list[dict[str, Any]] = []
    for group in groups:
        for sample in group.samples:
            choice = form.choice(len(choices), sample.text, sample.token_ids, sample.policy_logprobs, 0)
            choice["finish_reason"] = finish_reason(sample)
            if options.return_token_ids:
                choice["prompt_token_ids"] = group.prompt_ids
            choices.append(choice)
    return as_json(form.body(choices, groups[0].samples[0].policy_version, usage))


async def _pieces(serving: Serving, form: _Form, prompts: list[Any]) -> AsyncGenerator[dict[str, Any], None]:
    async with serving.models.use(form.asked.model) as adapter:
        version = 0
        async with await drawing(serving.engine, prompts, form.asked, adapter) as drawn:
            async for piece in drawn.pieces():
                if piece.sample.finish_reason == "deadline":
                    continue
                version = piece.sample.policy_version
                yield form.body([form.piece(piece)], version, None)
            groups = in_time(await drawn.groups())
        usage = usage_of(serving, groups)
        if form.options.include_usage:
            yield form.body([], version, usage)


class _Form:
    """The form of one answer's parts."""

    def __init__(self, engine: Engine, asked: CompletionRequest, options: AnswerOptions) -> None:
        self.engine, self.asked, self.options = engine, asked, options
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._lengths: dict[int, int] = {}

    def body(
        self, choices: list[dict[str, Any]], version: int, usage: dict[str, int] | None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self.asked.model,
            "choices": choices,
            "policy_version": version,
        }
        return body if usage is None else {**body, "usage": usage}

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A piece as the choice of an event."""
        offset = self._lengths.get(piece.index, 0)
        self._lengths[piece.index] = offset + len(piece.text)
        choice = self.choice(piece.index, piece.text, piece.token_ids, piece.logprobs, offset)
        choice["finish_reason"] = finish_reason(piece.sample) if piece.last else None
        if self.options.return_token_ids and piece.start == 0:
            choice["prompt_token_ids"] = piece.sample.prompt_ids
        return choice

    def choice(
        self, index: int, text: str, ids: list[int], logprobs: Sequence[float], offset: int
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if self.asked.logprobs is not None:
            tokens = [self._token(token) for token in ids]
            lengths = itertools.accumulate((len(token) for token in tokens[:-1]), initial=offset)
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}" for token in ids]
                if self.options.return_tokens_as_token_ids
                else tokens,
                "token_logprobs": list(logprobs),
                "top_logprobs": None,
                "text_offset": list(lengths)[: len(tokens)],
            }
        if self.options.return_token_ids:
            choice["token_ids"] = ids
        return choice

    def _token(self, token: int) -> str:
        text: str = self.engine.tokenizer.decode([token]) if self.engine.tokenizer is not None else ""
        return text


# -- shared with `generate` ---


async def drawing(
    engine: Engine, prompts: list[Any], asked: CompletionRequest | GenerateRequest, adapter: bool
) -> Drawing:
    """The drawing of a request; its prompts are encoded in a thread."""
    priority = -asked.priority if isinstance(asked, GenerateRequest) else 0
    sampling = asked.sampling(adapter, engine.context_length)
    draw = partial(engine.draw, prompts, sampling, priority=priority, deadline=asked.timeout)
    return await asyncio.to_thread(draw)


async def answered(drawing: Drawing) -> list[Group]:
    """The groups of a drawing. Raises RequestTimeout where the time was over."""
    async with drawing:
        return in_time(await drawing.groups())


def in_time(groups: list[Group]) -> list[Group]:
    """The groups. Raises RequestTimeout where one was cut by its deadline."""
    samples = [sample for group in groups for sample in group.samples]
    if any(sample.finish_reason == "deadline" for sample in samples):
        tokens = sum(len(sample.token_ids) for sample in samples)
        raise RequestTimeout(f"no answer in time, {tokens} tokens were drawn")
    return groups


def finish_reason(sample: Sample) -> str:
    """Why a sample ended, in OpenAI's words."""
    return "stop" if sample.finish_reason == "stop" else "length"


def usage_of(serving: Serving, groups: list[Group]) -> dict[str, int]:
    """The tokens of an answer, counted."""
    prompt = sum(len(group.prompt_ids) for group in groups)
    drawn = sum(len(sample.token_ids) for group in groups for sample in group.samples)
    serving.metrics.count_tokens(prompt, drawn)
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
