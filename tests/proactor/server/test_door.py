"""Who is let in, how much is taken, and what rubbish gets."""

from __future__ import annotations

import hmac
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import APIRouter, Request

from proactor.engine import ProactorError
from proactor.server.keys import KeyFileError, Keys
from proactor.server.serving import Serving
from tests.engine.engines import load
from tests.proactor.server.served import Served, error

KEY, OTHER = "a-key-of-the-first-user", "a-key-of-the-second-one"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
router = APIRouter()


@router.get("/broken")
async def broken(request: Request) -> None:
    raise KeyError("a secret of the server")


@router.get("/refused")
async def refused(request: Request) -> None:
    raise ProactorError(f"{len(Serving.of(request).models.cards())} models")


@pytest.fixture(scope="module")
def locked(chat_folder: Path) -> Iterator[Served]:
    """A server with keys, and small limits."""
    engine = load(chat_folder, stir=False, kv_tokens=4096)
    limits: dict[str, Any] = {"max_body": 4096, "max_concurrent": 2, "max_tokens": 700, "max_samples": 4}
    with Served(engine, keys=(KEY, OTHER), more=(router,), **limits) as served:
        yield served
        served.wait_idle()
    engine.release()


# -- keys ---


def test_only_a_key_lets_in(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (KEY, OTHER):
        assert locked.openai(key).chat.completions.create(**CHAT).choices  # type: ignore[call-overload]
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper(), "ключ"):
        headers = {"Authorization": f"Bearer {wrong}".encode().decode("latin-1")}
        for path in ("/v1/models", "/metrics", "/nowhere", "/v1/chat/completions"):
            status, answered, body = locked.ask("GET", path, headers=headers)
            assert status == 401 and error(body)["code"] == "invalid_api_key", path
            assert answered["www-authenticate"] == "Bearer" and not (wrong and wrong in body)
    assert locked.ask("GET", "/v1/models", headers={"Authorization": f"Basic {KEY}"})[0] == 401
    assert locked.ask("GET", f"/v1/models?api_key={KEY}")[0] == 401
    with pytest.raises(openai.AuthenticationError):
        locked.openai("wrong").models.list()
    assert KEY not in caplog.text and KEY not in repr(locked.serving.keys)


def test_no_key_is_logged_at_any_level(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    """All loggers tell everything before the server begins: uvicorn decides then what it traces."""
    caplog.set_level(1)
    headers = {"Authorization": f"Bearer {KEY}"}
    with Served(locked.engine, keys=(KEY,), more=(router,)) as served:
        assert served.ask("GET", "/v1/models", headers=headers)[0] == 200
        assert served.ask("GET", f"/broken?key={KEY}", headers=headers)[0] == 500
        assert served.ask("GET", "/v1/models", headers={"Authorization": f"Basic {KEY}"})[0] == 401
        served.raw(f"GET / HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nHost: a\r\nHost: b\r\n\r\n".encode())
    assert "asyncio" in {record.name for record in caplog.records} and KEY not in caplog.text


def test_health_needs_no_key_and_metrics_do(locked: Served) -> None:
    assert locked.ask("GET", "/health")[::2] == (200, '{"status":"ok"}')
    status, headers, body = locked.ask("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert status == 200 and headers["content-type"].startswith("text/plain") and KEY not in body


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one, as digests of one length, whichever matches."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    keys = Keys([KEY, OTHER])
    assert [keys.admit(f"Bearer {k}") for k in (KEY, OTHER, "x")] == [True, True, False]
    assert compared == [(32, 32)] * 6


def test_keys_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\n{KEY}\n  {OTHER}  \n")
    monkeypatch.setenv("PROACTOR_TEST_KEY", "a-key-of-the-third-user")
    keys = Keys.read(file, "PROACTOR_TEST_KEY")
    assert all(keys.admit(f"bearer {k}") for k in (KEY, OTHER, "a-key-of-the-third-user"))
    assert not keys.admit("Bearer # of the team") and not keys.admit("Bearer ")
    for text, said in (("", "no key in it"), ("short\n", f"{file}:1"), (f"{KEY}\n{KEY} {KEY}", f"{file}:2")):
        file.write_text(text)
        with pytest.raises(KeyFileError, match=said) as refusal:
            Keys.read(file)
        assert KEY not in str(refusal.value)
    monkeypatch.setenv("PROACTOR_TEST_KEY", "")
    with pytest.raises(KeyFileError, match="PROACTOR_TEST_KEY"):
        Keys.read(None, "PROACTOR_TEST_KEY")


# -- bodies ---


def ask(served: Served, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
    given = {"Authorization": f"Bearer {KEY}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return served.ask("POST", "/v1/chat/completions", body, given)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body:1: not JSON"),
        (b"{", "body:1: not JSON"),
        (b"\xff\xfe", "body:1: not UTF-8"),
        (b"[1]", "a JSON object, not list"),
        (b"null", "a JSON object, not NoneType"),
        (b"[" * 4000, "nested too deeply"),
        (b'{"n": ' + b"9" * 4000 + b"}", "an integer of 4000 characters"),
        (b'{"temperature": NaN, "model": "tiny", "messages": []}', "temperature=nan"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', "ud800"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "cannot encode"),
    ],
)
def test_rubbish_is_refused_in_one_line(locked: Served, body: bytes, said: str) -> None:
    status, _, answer = ask(locked, body)
    told = error(answer)["message"]
    assert status in (400, 404) and said in told and "\n" not in told, answer


def test_a_body_of_another_kind_is_refused(locked: Served) -> None:
    """A page in a browser can send texts and forms anywhere; JSON only where it was allowed to."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert ask(locked, b"{}", Content_Type=kind)[0] == 415
    assert ask(locked, CHAT, Content_Type="application/json; charset=utf-8")[0] == 200


def test_a_large_body_is_refused_whether_or_not_it_says_so(locked: Served) -> None:
    big = json.dumps({**CHAT, "user": "x" * 5000}).encode()
    status, _, answer = ask(locked, big)
    assert status == 413 and error(answer)["code"] == "body_too_large"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunk = b"400\r\n" + b"x" * 0x400 + b"\r\n"
    assert locked.raw(head.encode() + chunk * 6 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    locked.raw(head.encode() + chunk * 30)  # and no end of it: the connection is closed


def test_limits_of_tokens_and_samples(locked: Served) -> None:
    for change, said in (
        ({"max_tokens": 701}, "max_tokens 701, the server draws 700"),
        ({"max_completion_tokens": 701, "max_tokens": None}, "max_tokens 701"),
        ({"n": 5}, "5 samples"),
    ):
        status, _, answer = ask(locked, {**CHAT, **change})
        assert status == 400 and said in error(answer)["message"]


def test_more_at_once_than_there_are_places(locked: Served) -> None:
    long = {**CHAT, "max_tokens": 700, "stream": True, "temperature": 0}
    body = json.dumps(long).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with locked.connect() as one, locked.connect() as two:
        for connection in (one, two):
            connection.sendall(head.encode() + body)
        while locked.serving.taken < 2:
            time.sleep(0.001)
        status, headers, answer = ask(locked, CHAT)
        assert status == 429 and headers["retry-after"] == "1"
        assert error(answer)["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            locked.openai(KEY).chat.completions.create(**CHAT)  # type: ignore[call-overload]
    locked.wait_idle()
    assert ask(locked, CHAT)[0] == 200


def test_a_body_that_nobody_reads_ends_with_its_answer(locked: Served) -> None:
    """Who has no key, or asks what is not there, is answered before the body, and the connection closes."""
    endless = b"400\r\n" + b"x" * 0x400 + b"\r\n"
    for path, key, status in (("/v1/completions", "none", 401), ("/nowhere", KEY, 404), ("/health", "", 405)):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = locked.raw(head.encode() + endless * 4)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b"connection: close" in answer.lower()


def test_more_connections_than_are_served_are_refused(locked: Served) -> None:
    most = locked.serving.limits.max_connections
    while locked.server.server_state.connections:  # those of other tests
        time.sleep(0.001)
    held = [locked.connect() for _ in range(most)]
    try:
        while len(locked.server.server_state.connections) < most:
            time.sleep(0.001)
        with locked.connect() as idle:
            idle.settimeout(5)  # before a head has to be there
            assert idle.recv(1 << 16).startswith(b"HTTP/1.1 503 ") and not idle.recv(1)
        assert locked.counted("proactor_connections_refused_total") == 1
        held[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert held[0].recv(1 << 16).startswith(b"HTTP/1.1 200 ")  # who is connected is served
    finally:
        for connection in held:
            connection.close()
    while locked.server.server_state.connections:
        time.sleep(0.001)
    assert locked.ask("GET", "/health")[0] == 200


# -- paths and heads ---


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/..%2f..%2fetc/passwd",
        "/v1/models/%00",
        "/v1/models/..%5c..%5cetc%5cpasswd",
        "//etc/passwd",
        "http://evil.example/etc/passwd",
        "/v1/models/%ff%fe",
        "/docs",
        "/openapi.json",
        "/v1",
    ],
)
def test_paths_lead_nowhere(server: Served, path: str) -> None:
    status, _, body = server.ask("GET", path)
    assert status == 404 and error(body) and "root:" not in body


def test_heads_that_break_lines_are_refused(server: Served) -> None:
    for evil in ("a\r\nX-Evil: 1", "a\nX-Evil: 1"):
        status, headers, _ = server.ask("GET", "/v1/models", headers={"X-Session-ID": evil})
        assert "x-evil" not in headers and status in (200, 400)
    status, headers, body = server.ask("GET", "/v1/models/a%0d%0aX-Evil:%201")
    assert status == 404 and "x-evil" not in headers and "\r\n" not in body
    assert server.raw(b"\x16\x03\x01 rubbish\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2_000_000
    assert b" 200 " not in server.raw(head + b"\r\n\r\n")[:20]


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 2", "Content-Length: 9"),
        ("Content-Length: -2",),
        ("Content-Length: 2, 9",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Host: evil.example", "Content-Length: 2"),
        ("X: a\rb", "Content-Length: 2"),
        ("X\0: a", "Content-Length: 2"),
        (" folded: a", "Content-Length: 2"),
    ],
)
def test_heads_that_can_be_read_in_two_ways_are_refused(server: Served, lines: tuple[str, ...]) -> None:
    head = ["POST /v1/completions HTTP/1.1", *lines, "Host: localhost", "Content-Type: application/json"]
    answer = server.raw("\r\n".join([*head, "", "{}"]).encode("latin-1"))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")) and answer.count(b"HTTP/1.1") == 1


def test_a_page_elsewhere_cannot_ask_a_server_without_keys(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.serving, "host", "desk.example")
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]",
        "[",
        ":1",
    ):
        assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == 403
    for host in (
        "localhost",
        "localhost:9",
        "127.0.0.1",
        "[::1]:80",
        "127.0.0.2:80",
        "[::1]",
        "Desk.example:8",
    ):
        assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == 200


def test_a_wrong_method_and_a_bug(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    assert locked.ask("GET", "/v1/chat/completions", headers=key)[0] == 405
    status, _, body = locked.ask("GET", "/broken", headers=key)
    assert status == 500 and "secret" not in body and error(body)["type"] == "server_error"
    status, _, body = locked.ask("GET", "/refused", headers=key)
    assert status == 400 and error(body)["message"] == "1 models"


def test_requests_are_counted_by_route_and_status(server: Served) -> None:
    before = {
        route: server.counted("proactor_requests_total", route=route, status=status)
        for route, status in (("/v1/models/{name:path}", "404"), ("other", "404"), ("/health", "200"))
    }
    tokens = server.counted("proactor_tokens_in_total"), server.counted("proactor_tokens_out_total")
    server.ask("GET", "/v1/models/none")
    server.ask("GET", "/a/path/of/the/clients")
    server.ask("GET", "/health")
    done = server.openai().chat.completions.create(**CHAT)  # type: ignore[call-overload]
    after = [
        server.counted("proactor_requests_total", route=route, status=status)
        for route, status in (("/v1/models/{name:path}", "404"), ("other", "404"), ("/health", "200"))
    ]
    assert after == [count + 1 for count in before.values()]
    assert server.counted("proactor_tokens_in_total") == tokens[0] + done.usage.prompt_tokens
    assert server.counted("proactor_tokens_out_total") == tokens[1] + done.usage.completion_tokens
    assert server.counted("proactor_engine_pages_total") == 1024
    assert server.counted("proactor_engine_pages_used") == server.counted("proactor_engine_kv_use") == 0
    assert threading.active_count() < 40
