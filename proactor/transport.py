"""What goes out to a server and what is taken from it: no secret outside its header, no redirect, no body
without an end.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from proactor.engine import ProactorError

HEADERS = {"Accept-Encoding": "identity"}
"""Answers are small; a compressed one could unpack to any size."""


OWN_FIELDS = frozenset({"model", "messages", "stream", "stream_options"})
"""Fields of a request that are never an option."""
_SECRET = re.compile(
    r"(extra|default)_(headers|query)|headers|.*(api|access|secret)[-_]?key|key|authorization|bearer"
    r"|(.*[-_])?(password|passwd|secret|credentials?)|((api|access|auth|bearer)[-_]?)?token",
    re.IGNORECASE,
)
"""Names of options that hold a secret."""
LONGEST_URL = 2000
"""Characters of a server's address."""


class TransportError(ProactorError):
    """A response that is not taken; the message is one line without secrets."""


def base_url_problem(url: str) -> str:
    """Why ``url`` cannot be the address of a server, without quoting its secrets; empty where it can.

    Addresses stand in reports, cache keys and judge names, so they must not hold a user name or a key.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (reading it checks it)
        (parts.hostname or "").encode("idna")
    except ValueError:
        return "is no URL"
    if not url.isprintable() or " " in url or len(url) > LONGEST_URL:
        return "is no URL"
    if "@" in parts.netloc:
        return "holds a user name or password, which would stand in reports and caches"
    if parts.query or parts.fragment:
        return "holds a query or fragment, which would stand in reports and caches"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is no http or https URL"
    return ""


def options_problem(options: Mapping[str, Any]) -> str:
    """Why ``options`` cannot go along with every request, without their values; empty where they can.

    They stand in configs, judge names and cache keys, so they must hold neither headers nor keys.
    """
    for name, value in options.items():
        if name in OWN_FIELDS:
            return f"options.{name} is not to be set here"
        if _SECRET.fullmatch(name):
            return f"options.{name} would stand in judge names and cache keys"
        if isinstance(value, Mapping) and (problem := options_problem(value)):
            return problem.replace("options.", f"options.{name}.", 1)
    return ""


def read_key(variable: str) -> str:
    """The API key in an environment variable, without white space around it; empty where there is none.

    Raises TransportError, without the key, where it holds what no header can.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise TransportError(
            f"the environment variable {variable} holds no key: a line break, a space or another character "
            "that no HTTP header takes is in the middle of it"
        )
    return key


def hide(text: str, secret: str) -> str:
    """``text`` without ``secret``, which a server may repeat in its message."""
    return text.replace(secret, "***") if secret else text


def guard(most: int) -> Callable[[Any], Awaitable[None]]:
    """A hook for the responses of httpx, or of the httpx2 that newer clients bring.

    One that redirects is refused, and no body may hold more than ``most`` bytes, unpacked: TransportError is
    raised in place of the response, or while its body is read.
    """

    async def check(response: Any) -> None:
        if response.is_redirect:
            raise TransportError(
                f"redirects to {_address(response.headers.get('location', ''))}, where no request is sent; "
                "give that address as base_url if it is meant"
            )
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", ""):
            raise TransportError(f"a body in content-encoding {coding[:40]!r}, though none was asked for")
        response.headers.pop("content-encoding", None)  # it is unpacked here
        response.encoding = "utf-8"  # as JSON is; the server could name any codec of Python's
        response.stream = _bounded(response.stream, most, packed=coding == "gzip")

    return check


def _address(location: str) -> str:
    """The address of a redirect, without a user name, password or query."""
    try:
        place = urlsplit(location)
    except ValueError:
        return "something that is no address"
    host = place.netloc.rpartition("@")[2]
    where = f"{place.scheme}://{host}{place.path}" if host else place.path
    return where or "an address that it does not name"


def _bounded(stream: Any, most: int, packed: bool) -> Any:
    """``stream``, unpacked in pieces of which none can grow beyond ``most`` bytes."""

    class Bounded(type(stream)):  # type: ignore[misc]  # a stream of the library that made it
        def __init__(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpack, left = zlib.decompressobj(zlib.MAX_WBITS | 16) if packed else None, most
            async for piece in stream:
                try:
                    data = piece if unpack is None else unpack.decompress(piece, left + 1)
                except zlib.error as error:
                    raise TransportError(f"a body that is no gzip ({error})") from None
                left -= len(data)
                if left < 0:
                    raise TransportError(f"a body of more than max_response_bytes={most}")
                yield data

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
