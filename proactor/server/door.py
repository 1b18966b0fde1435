"""`Door`: what every request passes: its key, its host, and the count of how it ended."""

from __future__ import annotations

import ipaddress
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proactor.server.refusals import Refused, as_json, error_body
from proactor.server.serving import Serving

OPEN = ("/health",)
"""Paths that need no key."""
UNSURE = (b"connection", b"close")


class Door:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            return
        began, status, headers = time.perf_counter(), 0, Headers(scope=scope)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

        async def heard() -> Message:
            nonlocal has_body
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                has_body = False
            return message

        async def said(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if has_body:  # what was not read cannot be told from the next request
                    message = {**message, "headers": [*message.get("headers", ()), UNSURE]}
            await send(message)

        metrics = self._serving.metrics
        try:
            if (refusal := self._refusal(scope["path"], headers)) is not None:
                body = error_body(refusal.status, str(refusal), refusal.code)
                await as_json(body, refusal.status, refusal.headers)(scope, heard, said)
            else:
                await self._app(scope, heard, said)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(route, str(status or 499)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, path: str, headers: Headers) -> Refused | None:
        if path in OPEN:
            return None
        keys = self._serving.keys
        if not keys:
            # a page in a browser must not reach a server that has no key by a name of its own
            host = headers.get("host", "localhost").rpartition(":")
            name = host[0] if host[2].isdigit() else headers.get("host", "localhost")
            if name.lower() not in ("localhost", self._serving.host.lower()) and not _is_loopback(name):
                return Refused(403, "without a key this server answers to localhost alone")
        elif not keys.admit(headers.get("authorization", "")):
            return Refused(
                401,
                "no valid key in the header Authorization",
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )
        return None


def _is_loopback(host: str) -> bool:
    """Whether a host is an address of this machine; a name is none, whatever it stands for."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
