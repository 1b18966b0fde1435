"""How an endpoint fails: what a caller is told, and which failures are tried again, or with fewer fields."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from proactor.engine import ProactorError, printable

if TYPE_CHECKING:
    import openai

Kind = Literal["timeout", "rate_limit", "connection", "http", "empty"]

REFUSALS = (400, 422, 501)
"""HTTP statuses for an unknown request field."""


class EndpointError(Exception):
    """No usable answer after all retries. ``kind``: the reason; the message is one line."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(printable(" ".join(message.split()))[:300])
        self.kind: Kind = kind


class EndpointSetupError(ProactorError):
    """An endpoint that cannot be used: no client installed, no key, or an impossible setting. One line."""


class Retryable(Exception):
    """A failure that may pass; ``wait``: seconds that the server asked for."""

    def __init__(self, error: EndpointError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class FieldRefused(Exception):
    """A request with a field that the server refuses."""

    def __init__(self, error: EndpointError) -> None:
        super().__init__(str(error))
        self.error = error


def said(error: openai.APIStatusError) -> str:
    """The status, and what the server said. Newer clients leave that out where it is no ``error.message``,
    as of servers that answer in plain text or with a ``detail``.
    """
    message = str(error)
    bare = message == f"Error code: {error.status_code}" and error.body is not None
    return f"{message} - {error.response.text}" if bare else message


def judged(error: openai.APIStatusError, told: EndpointError) -> Exception:
    """What to raise for an error status that is no rate limit, of which the caller would be ``told``."""
    if error.status_code in REFUSALS:
        return FieldRefused(told)
    return Retryable(told, retry_after(error)) if error.status_code >= 500 else told


def retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds of a Retry-After header, None where it is absent or a date."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
