"""Clients that leave, are slow, or ask while the server ends: nothing of theirs stays."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import Engine
from tests.engine.engines import load
from tests.proactor.server.served import ASK, PATIENCE, Served, error, parsed

LONG = {"model": "tiny", "messages": ASK, "max_tokens": 900, "seed": 1}
TEXT = {"model": "tiny", "prompt": "a", "max_tokens": 900, "seed": 1}
TOKENS = {"token_ids": [1], "sampling_params": {"max_tokens": 900, "ignore_eos": True}}


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Iterator[Engine]:
    engine = load(chat_folder, stir=False, kv_tokens=4096)
    yield engine
    engine.release()


@pytest.fixture
def hasty(engine: Engine) -> Iterator[Served]:
    """A server that waits for nobody."""
    limits = {"head_timeout": 0.3, "body_timeout": 0.3, "write_timeout": 0.3, "idle_timeout": 1}
    with Served(engine, **limits) as served:
        yield served
        served.wait_idle()


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", LONG),
        ("/v1/chat/completions", {**LONG, "stream": True}),
        ("/v1/completions", TEXT),
        ("/v1/completions", {**TEXT, "stream": True}),
        ("/inference/v1/generate", TOKENS),
    ],
)
def test_who_leaves_ends_the_sampling(server: Served, path: str, body: dict[str, Any], rough: bool) -> None:
    before = server.counted("proactor_clients_gone_total")
    with server.connect() as connection:
        connection.sendall(post(path, body))
        until(lambda: server.engine.counters().get("decoding"))
        if rough:  # a reset, instead of the end of a conversation
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.wait_idle()
    until(lambda: server.counted("proactor_clients_gone_total") == before + 1)
    assert server.serving.engine.counters()["pages_used"] == 0


def test_who_leaves_before_the_body_is_whole(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(post("/v1/chat/completions", LONG)[:-5])
    server.wait_idle()
    status = server.ask("GET", "/health")[0]
    assert status == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: local"])
def test_a_head_that_does_not_end(hasty: Served, sent: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(sent)
        assert connection.recv(10) == b""
    assert hasty.counted("proactor_clients_stalled_total", what="head") == 1


def test_a_head_that_comes_drop_by_drop(hasty: Served) -> None:
    """Each byte in time, the head not: on a connection that was used before, too."""
    with hasty.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b'"ok"' not in received:
            received += connection.recv(1 << 16)
        with pytest.raises(ConnectionError):
            for _ in range(300):
                connection.sendall(b"G")
                time.sleep(0.02)
    assert hasty.counted("proactor_clients_stalled_total", what="head") == 1


def test_a_body_that_does_not_end(hasty: Served) -> None:
    with hasty.connect() as connection:
        connection.sendall(post("/v1/chat/completions", LONG)[:-1])
        status, headers, body = parsed(read_all(connection))
    assert status == 408 and "no whole body" in error(body)["message"] and headers["connection"] == "close"
    assert hasty.counted("proactor_clients_stalled_total", what="body") == 1


def test_a_body_that_comes_drop_by_drop(hasty: Served) -> None:
    """Each chunk in time, the whole not."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with hasty.connect() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.settimeout(0.02)
        received, end = b"", time.monotonic() + PATIENCE
        while not received:
            assert time.monotonic() < end
            connection.sendall(b"1\r\n \r\n")
            with suppress(TimeoutError):
                received = connection.recv(1 << 16)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert hasty.counted("proactor_clients_stalled_total", what="body") == 1


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def test_a_reader_that_stalls(hasty: Served) -> None:
    """Its answer fills every buffer on the way; then the connection is dropped, and its sampling ends."""
    before = hasty.engine.counters().get("tokens_sampled", 0)
    asked = {**TEXT, "n": 16, "stream": True, "logprobs": 1, "return_token_ids": True}
    with hasty.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        shrink(hasty)
        connection.sendall(post("/v1/completions", asked))
        until(lambda: hasty.counted("proactor_clients_stalled_total", what="read") == 1)
    hasty.wait_idle()
    assert hasty.counted("proactor_clients_gone_total") == 1
    assert hasty.engine.counters()["tokens_sampled"] - before < 16 * 900


def shrink(served: Served) -> None:
    """Small buffers at the server's end of the connections that are open."""

    def now() -> None:
        for connection in served.server.server_state.connections:
            transport: Any = connection.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
            transport.set_write_buffer_limits(high=1024)

    until(lambda: served.server.server_state.connections)
    served.loop.call_soon_threadsafe(now)


# -- the end ---


def ask_in_thread(served: Served, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(served.ask("POST", "/v1/chat/completions", body, {}))
    )
    thread.start()
    until(lambda: served.engine.counters().get("decoding"))
    return thread, answers


def test_what_runs_may_end_and_nothing_new_begins(engine: Engine) -> None:
    with Served(engine) as served:
        thread, answers = ask_in_thread(served, {**LONG, "max_tokens": 200, "temperature": 0})
        served.server.should_exit = True
        until(lambda: served.serving.ending)
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                served.connect().close()
                time.sleep(0.01)
        thread.join()
    [(status, _, body)] = answers
    assert status == 200 and json.loads(body)["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_cut_short(engine: Engine, stream: bool) -> None:
    with Served(engine, drain=0.01) as served:  # sooner than any machine ends it
        thread, answers = ask_in_thread(served, {**LONG, "stream": stream})
    thread.join()
    [(status, _, body)] = answers
    assert "the server is shutting down" in body and "[DONE]" not in body
    assert status == (200 if stream and "chunk" in body else 503)
    served.wait_idle()


def test_no_task_outlives_its_client(engine: Engine) -> None:
    with Served(engine) as served:
        counts: list[int] = []

        def count() -> None:
            counts.append(len(asyncio.all_tasks()))

        for _ in range(2):
            for body in (LONG, {**LONG, "stream": True}):
                with served.connect() as connection:
                    connection.sendall(post("/v1/chat/completions", body))
                    until(lambda: served.engine.counters().get("decoding"))
            served.wait_idle()
            time.sleep(0.2)
            served.loop.call_soon_threadsafe(count)
        until(lambda: len(counts) == 2)
    assert counts[0] == counts[1] <= 3
