"""What stands before the page: only this machine, only who has the token, only requests of the page's own.

A page of another site may send requests to a server on this machine, or give its own name this machine's
address (DNS rebinding). So each request must name this server as its host, and carry the token of the address
that was printed, as the first part of its path; it is compared in constant time. Writing takes JSON, which no
other site can send unasked, and no more of it than a limit.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 2**22
"""Bytes of a request's body. A dialogue's windows are far below; its turns are never sent."""
Headers = list[tuple[bytes, bytes]]


class Guard:
    """An ASGI app before ``app``. ``token``: the first part of each path. ``port``: the one served on.
    ``policy``: the page's content security policy.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, policy: str) -> None:
        self.app = app
        self.token = token.encode()
        self.hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
        self.headers: Headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a web socket: closed unanswered
        given, slash, rest = scope["path"].removeprefix("/").partition("/")
        headers = dict(scope["headers"])
        if [value for name, value in scope["headers"] if name == b"host"] not in [
            [host] for host in self.hosts
        ]:
            await self._refuse(send, HTTPStatus.MISDIRECTED_REQUEST, "not the address of this server")
        elif not secrets.compare_digest(given.encode(errors="replace"), self.token):
            await self._refuse(
                send,
                HTTPStatus.FORBIDDEN,
                "no token, or an old one: open the address that `proactor review` printed",
            )
        elif not slash:
            await self._refuse(send, HTTPStatus.NOT_FOUND, "the address ends with a slash")
        elif (problem := self._writing_problem(scope["method"], headers)) is not None:
            await self._refuse(send, *problem)
        else:
            inner = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode(errors="replace")}
            await self._pass_on(inner, receive, send)

    def _writing_problem(self, method: str, headers: dict[bytes, bytes]) -> tuple[HTTPStatus, str] | None:
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get(b"origin")
        if origin is not None and origin.removeprefix(b"http://") not in self.hosts:
            return HTTPStatus.FORBIDDEN, "a request of another site"
        if headers.get(b"content-type", b"").partition(b";")[0].strip() != b"application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "application/json is wanted"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {LARGEST_BODY} bytes"
        return None

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            await self._refuse(
                send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {LARGEST_BODY} bytes"
            )
            return
        parts = iter([{"type": "http.request", "body": body}])

        async def receive_read() -> Message:
            return next(parts, None) or await receive()

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
            await send(message)

        await self.app(scope, receive_read, send_guarded)

    async def _refuse(self, send: Send, status: HTTPStatus, why: str) -> None:
        body = json.dumps({"error": why}).encode()
        headers: Iterable[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": int(status), "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes | None:
    """The body of a request; None for one beyond `LARGEST_BODY`. Of a client that left, what came."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > LARGEST_BODY:
            return None
        more = bool(message.get("more_body"))
    return body
