"""`Serving`: the state that the routers of a server share, and how a request is attended to.

    fields = await serving.fields(request)
    async with serving.place(request):
        ...

A place is refused where all are taken, and the block ends when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from proactor.engine import ChatRequest, Engine, OpenAIClient, TextPieces
from proactor.files import parse_json
from proactor.server.completion_request import CompletionRequest, GenerateRequest
from proactor.server.keys import Keys
from proactor.server.limits import Limits
from proactor.server.metrics import Metrics
from proactor.server.models import Models
from proactor.server.refusals import ClientGone, Refused, busy

R = TypeVar("R", ChatRequest, CompletionRequest, GenerateRequest)

DISCARDED = 4
"""Times the largest body that is read on and thrown away, so that the client gets to read the refusal."""


class Serving:
    """One engine, served. ``host``: the name or address that was given to listen at."""

    def __init__(
        self, engine: Engine, models: Models, limits: Limits, keys: Keys, host: str = "localhost"
    ) -> None:
        self.engine, self.models, self.limits, self.keys, self.host = engine, models, limits, keys, host
        self.metrics = Metrics(engine)
        self.taken = 0
        self.ending = False
        self._visits: set[_Visit] = set()

    @classmethod
    def of(cls, request: Request) -> Serving:
        """That of the app a request came to."""
        serving: Serving = request.app.state.serving
        return serving

    @cached_property
    def openai(self) -> OpenAIClient:
        """The client in process that answers chats. Raises EngineError without a tokenizer."""
        return self.engine.openai().with_options(priority=0)

    @cached_property
    def texts(self) -> TextPieces | None:
        """The texts of single tokens; None without a tokenizer."""
        tokenizer = self.engine.tokenizer
        return None if tokenizer is None else TextPieces(tokenizer)

    async def fields(self, request: Request) -> dict[str, Any]:
        """The JSON object in a request's body. Raises Refused for anything else."""
        self.refuse_when_full()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "send the body as Content-Type: application/json")
        try:
            async with asyncio.timeout(self.limits.body_timeout):
                body = await self._body(request)
        except TimeoutError:
            self.metrics.stalled.labels("body").inc()
            raise Refused(408, f"no whole body within {self.limits.body_timeout:g} s") from None
        except ClientDisconnect:
            raise ClientGone from None
        fields = parse_json(body, Path("body"))
        if not isinstance(fields, dict):
            raise Refused(400, f"the body should be a JSON object, not {type(fields).__name__}")
        return fields

    async def _body(self, request: Request) -> bytes:
        most, size, pieces = self.limits.max_body, 0, []
        async for piece in request.stream():
            size += len(piece)
            if size <= most:
                pieces.append(piece)
            else:
                pieces.clear()
                if size > DISCARDED * most:
                    break
        if size > most:
            raise Refused(413, f"a body of more than {most} bytes", "body_too_large")
        return b"".join(pieces)

    def refuse_when_full(self) -> None:
        """Raise Refused where every place is taken, or the server ends."""
        if self.ending:
            raise busy("the server is shutting down", 503)
        if self.taken >= self.limits.max_concurrent:
            raise busy(f"{self.taken} requests are answered at once, and no more")

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """A block for the sampling of a request whose body was read; cancelled when the client leaves
        (ClientGone), and when the server ends (Refused).
        """
        self.refuse_when_full()
        self.taken += 1
        self.metrics.places.inc()
        visit = _Visit()
        self._visits.add(visit)
        try:
            async with asyncio.timeout(None) as visit.limit:
                watch = asyncio.create_task(visit.watch(request))
                try:
                    yield
                finally:
                    visit.over = True  # the end of an answer looks like a client that left
                    watch.cancel()
        except TimeoutError:
            if not visit.limit.expired():  # the engine's own
                raise
            if self.ending and not visit.gone:
                raise busy("the server is shutting down", 503) from None
            raise ClientGone from None
        finally:
            if visit.gone:
                self.metrics.gone.inc()
            self._visits.discard(visit)
            self.taken -= 1
            self.metrics.places.dec()

    def within_limits(self, asked: R, samples: int) -> R:
        """A request of so many samples, with the server's limits on its tokens and its time. Raises Refused
        for one that asks for more.
        """
        limits, tokens = self.limits, asked.max_tokens
        if samples > limits.max_samples:
            raise Refused(400, f"{samples} samples in one request, the server draws {limits.max_samples}")
        if isinstance(asked, ChatRequest) and tokens is None:
            tokens = asked.max_completion_tokens
        if limits.max_tokens is not None:
            tokens = limits.max_tokens if tokens is None else tokens
            if tokens > limits.max_tokens:
                raise Refused(400, f"max_tokens {tokens}, the server draws {limits.max_tokens}")
        seconds = limits.timeout if asked.timeout is None else min(asked.timeout, limits.timeout)
        return asked.model_copy(update={"max_tokens": tokens, "timeout": seconds})

    def end_visits(self) -> None:
        """Cut short what is sampled now. From the event loop."""
        self.ending = True
        for visit in self._visits:
            visit.expire()


class _Visit:
    """A client that waits for an answer. ``limit`` cancels the block that answers it."""

    limit: asyncio.Timeout

    def __init__(self) -> None:
        self.gone = self.over = False

    async def watch(self, request: Request) -> None:
        """Wait until the client leaves."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not self.over:
            self.gone = True
            self.expire()

    def expire(self) -> None:
        """End the block now."""
        if not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time())
