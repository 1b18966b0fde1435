"""Clients of a server, in a process of their own: some wait for an answer, others do not behave.

    python -m bench.serving_clients PLAN.json      # prints what became of each request, as JSON

Bare HTTP over asyncio: OpenAI's client would take more time than the server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 600.0
"""Seconds after which a client gives up: a mistake."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Results:
    """What became of requests, by kind: outcomes, seconds to the answer and to its first event."""

    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    tokens: int = 0


class Clients:
    """``plan``: host, port, how many at once, the requests in their order, and the expected answers."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.results = plan, Results()
        self.requests = iter(enumerate(plan["requests"]))

    async def play(self) -> float:
        """Make all requests; returns the seconds that took."""
        began = time.perf_counter()
        await asyncio.gather(*(self._worker() for _ in range(self.plan["concurrent"])))
        return time.perf_counter() - began

    async def _worker(self) -> None:
        kept: Streams | None = None
        for number, request in self.requests:
            kind = request["kind"]
            try:
                async with asyncio.timeout(PATIENCE):
                    if request.get("manner"):
                        outcome = await MANNERS[request["manner"]](self, request)
                    else:
                        outcome, kept = await self._ask(kind, request, kept)
            except (OSError, EOFError, ValueError) as error:
                outcome, kept = f"failed: {type(error).__name__}", None
                self.results.problems.append(f"request {number} ({kind}): {error!r}")
            self.results.outcomes[kind][outcome] += 1
            if outcome == "wrong":
                self.results.problems.append(f"request {number} ({kind}): another answer")

    async def open(self) -> Streams:
        return await asyncio.open_connection(self.plan["host"], self.plan["port"], limit=1 << 24)

    async def _ask(
        self, kind: str, request: dict[str, Any], kept: Streams | None
    ) -> tuple[str, Streams | None]:
        streams = kept or await self.open()
        began = time.perf_counter()
        try:
            streams[1].write(bytes_of(request))
            status, body, first, close = await read(streams[0])
        except (ConnectionError, asyncio.IncompleteReadError):
            if kept is None:
                raise
            streams[1].close()
            return await self._ask(kind, request, None)  # the server had closed it meanwhile
        self.results.seconds[kind].append(time.perf_counter() - began)
        if first is not None:
            self.results.first[kind].append(first - began)
        if close:
            streams[1].close()
        return self._judge(request, status, body), None if close else streams

    def _judge(self, request: dict[str, Any], status: int, body: bytes) -> str:
        if status != request.get("status", 200):
            return str(status)
        expected = request.get("expect")
        if status != 200 or expected is None:
            return "right"
        answers = answers_of(body)
        self.results.tokens += sum(len(ids) for ids, _, _ in answers)
        if expected == "tokens":  # their number alone
            return "right" if all(len(ids) == request["tokens"] for ids, _, _ in answers) else "wrong"
        for (ids, logprobs, text), wanted in zip(answers, self.plan["expected"][expected], strict=True):
            if ids != wanted["token_ids"] or logprobs != wanted["logprobs"]:
                return "wrong"
            if text is not None and text != wanted["text"]:
                return "wrong"
        return "right"


def bytes_of(request: dict[str, Any]) -> bytes:
    """A request as it is sent."""
    if "raw" in request:
        return bytes.fromhex(request["raw"])
    body = json.dumps(request["body"]).encode() if "body" in request else b""
    method = "POST" if "body" in request else "GET"
    head = f"{method} {request['path']} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes, float | None, bool]:
    """Status, body, the time of a stream's first event, and whether the server closes."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, first = int(head.split()[1]), None
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
            first = first or time.perf_counter()
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, body, first, headers.get("connection") == "close"


def answers_of(body: bytes) -> list[tuple[list[int], list[float], str | None]]:
    """(ids, log-probabilities, text) of each choice, of an answer or of the events of one; no text where
    tokens were asked for.
    """
    if not body.startswith(b"data: "):
        return [_parts(choice) for choice in json.loads(body)["choices"]]
    *events, done = body.decode().removesuffix("\n\n").split("\n\n")
    if done != "data: [DONE]":
        return []
    whole: dict[int, tuple[list[int], list[float], str]] = {}
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            ids, logprobs, text = _parts(choice)
            before = whole.get(choice["index"], ([], [], ""))
            whole[choice["index"]] = (before[0] + ids, before[1] + logprobs, before[2] + (text or ""))
    return [whole[index] for index in sorted(whole)]


def _parts(choice: dict[str, Any]) -> tuple[list[int], list[float], str | None]:
    logprobs = choice.get("logprobs") or {}
    values = logprobs.get("token_logprobs")
    if values is None:
        values = [entry["logprob"] for entry in logprobs.get("content") or ()]
    message = choice.get("message") or choice.get("delta") or choice
    return choice["token_ids"], values, message.get("content", message.get("text"))


# -- manners ---


async def leave(clients: Clients, request: dict[str, Any]) -> str:
    """Ask, and leave while the answer is made."""
    _, writer = await clients.open()
    writer.write(bytes_of(request))
    await writer.drain()
    await asyncio.sleep(request["seconds"])
    if request["rough"]:  # a reset
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if request["rough"] else writer.close()
    return "left"


async def send_half(clients: Clients, request: dict[str, Any]) -> str:
    """Send a part of a request, and wait."""
    reader, writer = await clients.open()
    whole = bytes_of(request)
    writer.write(whole[: request["bytes"]])
    received = await reader.read()
    writer.close()
    return "408" if b" 408 " in received[:20] else "dropped" if not received else "answered"


async def read_nothing(clients: Clients, request: dict[str, Any]) -> str:
    """Ask for a long stream and do not read it."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    small.setblocking(False)
    place = clients.plan["host"], clients.plan["port"]
    await asyncio.get_running_loop().sock_connect(small, place)
    _, writer = await asyncio.open_connection(sock=small)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(bytes_of(request))
    await writer.drain()
    await asyncio.sleep(request["seconds"])
    writer.close()
    return "left"


async def send_rubbish(clients: Clients, request: dict[str, Any]) -> str:
    """Send what is refused."""
    reader, writer = await clients.open()
    writer.write(bytes_of(request))
    try:
        writer.write_eof()
        received = await reader.read()
    except ConnectionError:
        received = b""
    writer.close()
    if not received:
        return "dropped"
    return "refused" if received.startswith(b"HTTP/1.1 4") else "answered"


MANNERS: dict[str, Callable[[Clients, dict[str, Any]], Any]] = {
    "leave": leave,
    "send_half": send_half,
    "read_nothing": read_nothing,
    "send_rubbish": send_rubbish,
}


def main() -> None:
    """Make the requests of a plan and print the results."""
    clients = Clients(json.loads(Path(sys.argv[1]).read_text()))
    wall = asyncio.run(clients.play())
    found = clients.results
    print(
        json.dumps(
            {
                "wall": wall,
                "outcomes": found.outcomes,
                "seconds": found.seconds,
                "first": found.first,
                "problems": found.problems[:50],
                "tokens": found.tokens,
            }
        )
    )


if __name__ == "__main__":
    main()
