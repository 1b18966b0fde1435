"""`OpenAIClient`: the objects of OpenAI's client without a socket, answered by the engine of this process.

    client = engine.openai()
    question = [{"role": "user", "content": "Is it right?"}]
    done = client.chat.completions.create(model="base", messages=question)
    done.choices[0].message.content, done.usage.total_tokens

Judges, simulated users and environments written for an OpenAI client run on it. Their requests join the rows
that the engine samples already. ``create`` blocks its thread; ``client.asynchronous.chat.completions.create``
is awaited, in any event loop. From inside the engine (a mask, a loss) both are refused: it would wait for
itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from proactor.engine.adapter_names import BASE, POLICY
from proactor.engine.arguments import integer
from proactor.engine.chat import ChatFormat
from proactor.engine.chat_chunk import ChatChunks, ChatCompletionChunk
from proactor.engine.chat_completion import (
    ChatCompletion,
)
from proactor.engine.chat_request import ChatRequest
from proactor.engine.drawing import Drawing
from proactor.engine.jobs import JobMaker
from proactor.engine.openai_desk import Desk
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.submission import Submission, arrived
from proactor.engine.text_stream import TextPieces
from proactor.engine.tool_template import ToolTemplate
from proactor.engine.types import EngineError

C = TypeVar("C")

MODELS: Mapping[str, bool | str] = {BASE: False, POLICY: True}
"""Names of the weights, and what `Sampling.adapter` is for them; beside them the names of all adapters."""


class Completions:
    """``create``, which waits for the answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def create(self, **fields: Any) -> ChatCompletion:
        """A completion; ``fields`` are those of `ChatRequest`.

        Raises EngineError, in one line, for what is refused, and RequestTimeout.
        """
        request = ChatRequest.of(fields)
        submission = self._desk.submission(request, self._desk.number(request))
        self._desk.send(submission)
        try:
            group = submission.arrivals[0].result()
        except BaseException:  # Ctrl-C too
            self._desk.loop.cancel(submission)
            raise
        return self._desk.completion(request, group)


class AsyncCompletions:
    """``create``, which is awaited; giving up the wait ends the sampling."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, **fields: Any) -> ChatCompletion:
        """As `Completions.create`."""
        return await self.answer(ChatRequest.of(fields))

    async def answer(self, request: ChatRequest) -> ChatCompletion:
        """The completion of a request. Errors as `create`."""
        submission = await self._encoded(request)
        self._desk.send(submission)
        try:
            group = await arrived(submission.arrivals[0])
        except BaseException:
            self._desk.loop.cancel(submission)
            raise
        return await asyncio.to_thread(self._desk.completion, request, group)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatCompletionChunk, None]:
        """The completion of a request in chunks, as it is drawn; the last one has the ``usage``, no choice.

        With tools a choice comes whole, when it ends: only then is it known what it calls. Leaving the loop
        (`aclose`) ends the sampling. Errors as `create`.
        """
        submission = await self._encoded(request)
        chunks = ChatChunks(request, submission.jobs[0].prompt_ids, self._desk.choice, self._desk.logprobs)
        self._desk.count({"requests": 1})
        async with Drawing(self._desk.loop, submission, self._desk.texts) as drawing:
            async for piece in drawing.pieces():
                if piece.sample.finish_reason != "deadline" and (chunk := chunks.of(piece)) is not None:
                    yield chunk
            [group] = await drawing.groups()
        yield chunks.end(self._desk.usage(request, group))

    async def _encoded(self, request: ChatRequest) -> Submission:
        # the key first: requests of one event loop are numbered in their order
        return await asyncio.to_thread(self._desk.submission, request, self._desk.number(request))


@dataclass(frozen=True, slots=True)
class Chat(Generic[C]):
    """Holds ``completions``."""

    completions: C


class AsyncOpenAIClient:
    """`OpenAIClient` for event loops."""

    def __init__(self, desk: Desk) -> None:
        self.chat = Chat(AsyncCompletions(desk))


class OpenAIClient:
    """Made by `Engine.openai`; from any thread.

    ``counters``: requests, replies, timeouts, tokens_in, tokens_out, what replies to requests with tools held
    (`Reply.counts`), and the answers that were cut before they were as asked for: json_unmet,
    tool_choice_unmet.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.chat = Chat(Completions(desk))

    @classmethod
    def of(
        cls,
        loop: SamplingLoop,
        maker: JobMaker,
        chat: ChatFormat | None,
        base_name: str,
        aliases: Mapping[str, str] | None,
        noise: tuple[int, Iterator[int]],
    ) -> OpenAIClient:
        """A client of these parts of an engine; ``noise``: seed and numbers of requests without a seed.

        Raises EngineError for an alias of no model, and without a chat format.
        """
        if chat is None:
            raise EngineError(f"{base_name}: no tokenizer in the model folder, so there is no chat")
        known = {**MODELS, **{name: name for name in maker.adapters}}
        names = {**known, **({} if base_name in known else {base_name: False})}
        for alias, name in (aliases or {}).items():
            if name not in known:
                raise EngineError(f"openai: alias {alias!r} stands for {name!r}, which is none of {[*known]}")
            names[alias] = known[name]
        return cls(Desk(loop, maker, ToolTemplate(chat), TextPieces(chat.tokenizer), names, *noise))

    @property
    def asynchronous(self) -> AsyncOpenAIClient:
        """The same client with ``create`` as a coroutine."""
        return AsyncOpenAIClient(self._desk)

    @property
    def counters(self) -> Counter[str]:
        """Totals of this client and of those made `with_options` of it."""
        return self._desk.counters

    @property
    def models(self) -> Sequence[str]:
        """Names that a request may have as its ``model``."""
        return tuple(self._desk.names)

    def with_options(
        self, *, seed: int | None = None, priority: int | None = None, timeout: float | None = None
    ) -> OpenAIClient:
        """The same client with other options; what is None stays, and so does the count of requests.

        ``seed``: the count begins again, and the answer to the k-th request is a function of seed, k, and the
        request: the same in every run, whatever else is sampled meanwhile, if one thread asks. Without one
        each request draws a noise of its own, unless it has a ``seed`` itself. ``priority``: as
        `Session.sample`; 1 by default, because whoever asks holds up an episode that has begun. ``timeout``:
        seconds, looked at between two steps.
        """
        given = {"seed": seed, "priority": priority, "timeout": timeout}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for name in changes.keys() & {"seed", "priority"}:
            integer(changes[name], f"openai: {name}")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise EngineError(f"openai: timeout {timeout!r} is not a number of seconds")
        if seed is not None:
            changes["numbers"] = itertools.count()
        return OpenAIClient(replace(self._desk, **changes))
