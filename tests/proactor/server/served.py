"""A server in a thread, and clients that do not behave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fastapi import APIRouter
from openai import OpenAI

from proactor.engine import Engine
from proactor.server.app import create_app
from proactor.server.keys import Keys
from proactor.server.limits import Limits
from proactor.server.models import Models
from proactor.server.run import bind, server_of
from proactor.server.serving import Serving
from tests.engine.engines import idle

PATIENCE = 30.0
ASK = [{"role": "user", "content": "Is Friday dry?"}]


class Served:
    """A server of ``engine``, as a context manager. ``limits`` as keywords."""

    def __init__(
        self,
        engine: Engine,
        adapter: str | None = None,
        root: Path | None = None,
        keys: tuple[str, ...] = (),
        more: tuple[APIRouter, ...] = (),
        **limits: Any,
    ) -> None:
        self.engine = engine
        self.serving = Serving(engine, Models(engine, "tiny", adapter, root), Limits(**limits), Keys(keys))
        self.bound = bind("127.0.0.1", 0, bool(keys))
        self.port: int = self.bound.getsockname()[1]
        self._ready = threading.Event()
        self.server = server_of(create_app(self.serving, more), self.serving, self._ready.set)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve([self.bound])

        asyncio.run(serve())

    def __enter__(self) -> Served:
        self.thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, key: str = "none", **options: Any) -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE, **options)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and body of a request; ``body``: bytes as they are, else JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            "Connection": "close",
            **(headers or {}),
        }
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items())
        return parsed(self.raw(head.encode() + b"\r\n" + data))

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def raw(self, data: bytes) -> bytes:
        """Whatever comes back for these bytes, until the server closes."""
        with self.connect() as connection:
            received = b""
            with suppress(ConnectionError):  # it closed before it had read everything
                connection.sendall(data)
                while piece := connection.recv(1 << 16):
                    received += piece
            return received

    def counted(self, name: str, **labels: str) -> float:
        """A value of the metrics; 0 where it was not counted yet."""
        wanted = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        for line in self.serving.metrics.text().decode().splitlines():
            found, _, value = line.rpartition(" ")
            if found == wanted:
                return float(value)
        return 0.0

    def wait_idle(self) -> None:
        """Until no place is taken and the engine is at rest. Fails where that does not come."""
        until = time.monotonic() + PATIENCE
        while self.serving.taken or not idle(self.engine):
            assert time.monotonic() < until, "something is held"
            time.sleep(0.01)


def parsed(answer: bytes) -> tuple[int, dict[str, str], str]:
    """An answer's status, headers and body; (0, {}, "") for none."""
    if not answer:
        return 0, {}, ""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return int(first.split()[1]), headers, body.decode()


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16)
        whole, body = whole + body[:count], body[count + 2 :]
    return whole


def error(body: str) -> dict[str, Any]:
    """The error in a body of OpenAI's form."""
    value = json.loads(body)
    assert value.keys() == {"error"} and value["error"].keys() == {"message", "type", "param", "code"}
    told: dict[str, Any] = value["error"]
    return told
