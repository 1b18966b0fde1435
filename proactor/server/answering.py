"""How what was asked is answered: `respond`, whole or in events, and what completions and tokens share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import Response

from proactor.engine import Drawing, Engine, Group, RequestTimeout, Sample
from proactor.server.completion_request import CompletionRequest, GenerateRequest
from proactor.server.events import EventStream
from proactor.server.refusals import as_json
from proactor.server.serving import Serving


class Answer(Protocol):
    """An answer to be, by a `Sampling.adapter`."""

    async def whole(self, adapter: bool | str) -> dict[str, Any]:
        """The body of a response."""
        ...

    def events(self, adapter: bool | str) -> AsyncGenerator[dict[str, Any], None]:
        """The same in parts."""
        ...


async def respond(serving: Serving, request: Request, name: Any, answer: Answer, stream: bool) -> Response:
    """The response to a request for the model ``name``, which holds a place and the model until its end."""
    if stream:
        return EventStream(serving, request, _events(serving, name, answer))
    async with serving.place(request), serving.models.use(name) as adapter:
        return await asyncio.to_thread(as_json, await answer.whole(adapter))


async def _events(serving: Serving, name: Any, answer: Answer) -> AsyncGenerator[dict[str, Any], None]:
    async with serving.models.use(name) as adapter, aclosing(answer.events(adapter)) as events:
        async for event in events:
            yield event


async def drawing(
    engine: Engine, prompts: list[Any], asked: CompletionRequest | GenerateRequest, adapter: bool | str
) -> Drawing:
    """The drawing of a request; in a thread its prompts are encoded, and its constraint is compiled."""
    priority = -asked.priority if isinstance(asked, GenerateRequest) else 0

    def draw() -> Drawing:
        sampling = asked.sampling(adapter, engine.context_length)
        return engine.draw(prompts, sampling, priority=priority, deadline=asked.timeout)

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
