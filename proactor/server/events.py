"""`EventStream`: a response of server-sent events, each written as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from proactor.engine import ProactorError
from proactor.server.refusals import ClientGone, error_body, refusal_of, to_json
from proactor.server.serving import Serving

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Events of ``events``, then ``[DONE]``.

    What is raised before the first event has an ordinary response; later an event tells of it, and the client
    sees that ``[DONE]`` does not come.
    """

    def __init__(
        self, serving: Serving, request: Request, events: AsyncGenerator[dict[str, Any], None]
    ) -> None:
        self._serving, self._request, self._events = serving, request, events
        self._began = time.perf_counter()
        self.status_code, self.background = 200, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        begun = False
        try:
            async with self._serving.place(self._request), aclosing(self._events) as events:
                async for event in events:
                    if not begun:
                        self._serving.metrics.first_token.observe(time.perf_counter() - self._began)
                        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                        begun = True
                    await _write(send, b"data: " + to_json(event) + b"\n\n")
                await _write(send, DONE, more=False)
        except ClientGone:
            if not begun:
                raise
        except ProactorError as error:
            if not begun:
                raise
            refused = refusal_of(error)
            body = error_body(refused.status, str(refused), refused.code)
            await _write(send, b"data: " + to_json(body) + b"\n\n", more=False)


async def _write(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
