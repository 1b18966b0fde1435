"""``/v1/chat/completions``: OpenAI's chat, answered by the engine's client in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from proactor.engine import ChatRequest
from proactor.server.answering import respond
from proactor.server.options import AnswerOptions
from proactor.server.serving import Serving

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A chat completion, or its chunks."""
    serving = Serving.of(request)
    fields = await serving.fields(request)
    options = AnswerOptions.take(fields)
    name = fields.get("model")
    asked = ChatRequest.of({**fields, "model": "policy"})
    asked = serving.within_limits(asked, asked.n)
    return await respond(serving, request, name, _Chat(serving, asked, name, options), options.stream)


class _Chat:
    """The answer to a chat."""

    def __init__(self, serving: Serving, asked: ChatRequest, name: Any, options: AnswerOptions) -> None:
        self._serving, self._asked, self._name, self._options = serving, asked, name, options

    async def whole(self, adapter: bool | str) -> dict[str, Any]:
        completions = self._serving.openai.asynchronous.chat.completions
        completion = await completions.answer(self._of_weights(adapter))
        usage = completion.usage
        self._serving.metrics.count_tokens(usage.prompt_tokens, usage.completion_tokens)
        return await asyncio.to_thread(self._whole, completion.to_dict)

    async def events(self, adapter: bool | str) -> AsyncGenerator[dict[str, Any], None]:
        completions = self._serving.openai.asynchronous.chat.completions
        async with aclosing(completions.stream(self._of_weights(adapter))) as chunks:
            async for chunk in chunks:
                if (usage := chunk.usage) is not None:
                    self._serving.metrics.count_tokens(usage.prompt_tokens, usage.completion_tokens)
                    if not self._options.include_usage:
                        continue
                body = chunk.to_dict()
                for choice in body["choices"]:
                    choice.setdefault("finish_reason", None)
                yield self._shown(body)

    def _whole(self, completion: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        body = completion()
        for choice in body["choices"]:
            choice["message"].setdefault("content", None)
        return self._shown(body)

    def _of_weights(self, adapter: bool | str) -> ChatRequest:
        return self._asked.model_copy(
            update={"model": adapter if isinstance(adapter, str) else "policy" if adapter else "base"}
        )

    def _shown(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body under the model's name, with ids where they were asked for alone."""
        for choice in body["choices"]:
            entries = (choice.get("logprobs") or {}).get("content") or ()
            for token, entry in zip(choice["token_ids"], entries, strict=bool(entries)):
                entry["token"] = self._options.token(token, entry["token"])
                for top in entry["top_logprobs"]:
                    top["token"] = self._options.token(top.pop("token_id"), top["token"])
            if not self._options.return_token_ids:
                del choice["token_ids"]
        if not self._options.return_token_ids:
            body.pop("prompt_token_ids", None)
        return {**body, "model": self._name}
