"""``/v1/chat/completions``: OpenAI's chat, answered by the engine's client in process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from proactor.engine import ChatCompletionChunk, ChatRequest
from proactor.server.events import EventStream
from proactor.server.options import AnswerOptions
from proactor.server.refusals import as_json
from proactor.server.serving import Serving

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A chat completion, or its chunks."""
    serving = Serving.of(request)
    fields = await serving.fields(request)
    options = AnswerOptions.take(fields)
    name = fields.get("model")
    chat = ChatRequest.of({**fields, "model": "policy"})
    chat = serving.within_limits(chat, chat.n)
    if options.stream:
        return EventStream(serving, request, _chunks(serving, chat, name, options))
    async with serving.place(request), serving.models.use(name) as adapter:
        completions = serving.openai.asynchronous.chat.completions
        completion = await completions.answer(_of_weights(chat, adapter))
    usage = completion.usage
    serving.metrics.count_tokens(usage.prompt_tokens, usage.completion_tokens)
    body = {**completion.to_dict(), "model": name}
    for choice in body["choices"]:
        choice["message"].setdefault("content", None)
        _show_ids(choice, options)
    if not options.return_token_ids:
        del body["prompt_token_ids"]
    return as_json(body)


async def _chunks(
    serving: Serving, chat: ChatRequest, name: Any, options: AnswerOptions
) -> AsyncGenerator[dict[str, Any], None]:
    async with serving.models.use(name) as adapter:
        stream = serving.openai.asynchronous.chat.completions.stream(_of_weights(chat, adapter))
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.usage is not None:
                    serving.metrics.count_tokens(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    if not options.include_usage:
                        continue
                yield _event(chunk, name, options)


def _event(chunk: ChatCompletionChunk, name: Any, options: AnswerOptions) -> dict[str, Any]:
    event = {**chunk.to_dict(), "model": name}
    for choice in event["choices"]:
        choice.setdefault("finish_reason", None)
        _show_ids(choice, options)
    if not options.return_token_ids:
        event.pop("prompt_token_ids", None)
    return event


def _of_weights(chat: ChatRequest, adapter: bool) -> ChatRequest:
    return chat.model_copy(update={"model": "policy" if adapter else "base"})


def _show_ids(choice: dict[str, Any], options: AnswerOptions) -> None:
    """Show tokens by their ids where that was asked for, and no ids where it was not."""
    ids, logprobs = choice["token_ids"], choice.get("logprobs")
    if logprobs is not None and options.return_tokens_as_token_ids:
        entries: list[Mapping[str, Any]] = logprobs["content"]
        logprobs["content"] = [
            {**entry, "token": f"token_id:{token}"} for entry, token in zip(entries, ids, strict=True)
        ]
    if not options.return_token_ids:
        del choice["token_ids"]
