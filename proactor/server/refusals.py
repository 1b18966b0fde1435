"""What is answered in place of an answer, in OpenAI's form: ``{"error": {"message": …, "type": …}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from proactor.engine import ProactorError, RequestTimeout

GONE = 499
"""The status of a request whose client left; nobody reads it."""


class Refused(ProactorError):
    """A request that is not answered; ``code``: OpenAI's short name of the reason."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


class ClientGone(Exception):
    """The client left before its answer was complete."""


def busy(message: str, status: int = 429) -> Refused:
    """A refusal of what may succeed a second later."""
    return Refused(status, message, "rate_limit_exceeded" if status == 429 else None, {"Retry-After": "1"})


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON in ASCII: whatever a text holds, it can be sent."""
    return Response(to_json(value), status, dict(headers or {}), "application/json")


def to_json(value: Any) -> bytes:
    """Compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":")).encode()


def refusal_of(error: Exception) -> Refused:
    """The refusal that an exception stands for; one of 500, which tells nothing, for a bug."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestTimeout):
        return Refused(504, str(error), "timeout")
    if isinstance(error, ProactorError):
        return Refused(400, str(error))
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail), None, error.headers)
    return Refused(500, "internal error; the server's log has it")


async def respond(request: Request, error: Exception) -> Response:
    """The response to an exception."""
    if isinstance(error, ClientGone):
        return Response(status_code=GONE)
    refused = refusal_of(error)
    body = error_body(refused.status, str(refused), refused.code)
    return as_json(body, refused.status, refused.headers)


def answer_errors(app: FastAPI) -> None:
    """Let ``app`` answer every exception of a route so."""
    for kind in (ProactorError, HTTPException, ClientGone, Exception):
        app.add_exception_handler(kind, respond)
