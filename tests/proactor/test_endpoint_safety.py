"""The endpoint keeps secrets to itself, follows no redirect, and reads no body without an end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError, EndpointSetupError
from tests.proactor.fake_endpoint import (
    ASK,
    Behaviour,
    FakeEndpoint,
    ask,
    completion,
    http_error,
    malformed,
    ok,
    packed,
    redirect,
)


def test_white_space_around_a_key_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " secret-1\n")
    with FakeEndpoint() as fake:
        reply, _, _ = ask(fake)
        assert reply == "[]" and fake.headers[0]["authorization"] == "Bearer secret-1"


@pytest.mark.parametrize("key", ["secret-1\nsecret-2", "secret-1 secret-2", "secret-ü", "secret-1\x00"])
def test_a_key_that_no_header_takes_is_refused_without_quoting_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" in key:
        monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EndpointSetupError, match="variable OPENAI_API_KEY holds no key") as caught:
        asyncio.run(Endpoint("m", "http://127.0.0.1:9/v1").reply(ASK))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 200])
def test_a_key_that_the_server_repeats_is_cut_out(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with FakeEndpoint(otherwise=http_error(status, "no such key: secret-1")) as fake:
        reply, _, _ = ask(fake, attempts=1)
        assert isinstance(reply, EndpointError) and "no such key: ***" in str(reply)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://user:PASSWORD@host/v1", "holds a user name or password"),
        ("https://PASSWORD@host/v1", "holds a user name or password"),
        ("https://host/v1?key=PASSWORD", "holds a query"),
        ("https://host/v1#PASSWORD", "holds a query or fragment"),
        ("host/v1", "is no http or https URL"),
        ("ftp://host/v1", "is no http or https URL"),
        ("http://host:PASSWORD/v1", "is no URL"),
        ("http://host\n/v1", "is no URL"),
        ("http://host/v1\0", "is no URL"),
        (" http://host/v1", "is no "),
        ("http://\ud800/v1", "is no URL"),
        (f"http://host/{'x' * 70_000}", "is no URL"),
    ],
)
def test_an_address_that_would_spread_a_secret_is_refused(url: str, problem: str) -> None:
    with pytest.raises(EndpointSetupError, match=f"endpoint m: base_url {problem}") as caught:
        Endpoint("m", url)
    assert "PASSWORD" not in str(caught.value)
    with pytest.raises(EndpointSetupError, match=r"options\.extra_headers would stand") as caught:
        Endpoint("m", options={"extra_headers": {"x-key": "PASSWORD"}})
    assert "PASSWORD" not in str(caught.value)


@pytest.mark.parametrize("charset", ["utf-16", "hex", "rot13", "idna", "no-such-codec"])
@pytest.mark.parametrize("status", [200, 400])
def test_a_server_does_not_choose_how_its_answer_is_decoded(status: int, charset: str) -> None:
    headers = {"content-type": f"application/json; charset={charset}"}
    with FakeEndpoint(otherwise=lambda server, body: (status, headers, completion("hé"))) as fake:
        reply, _, _ = ask(fake)
    assert reply == "hé" if status == 200 else isinstance(reply, EndpointError) and "400" in str(reply)


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "PASSWORD"},
        {"extra_body": {"Authorization": "PASSWORD"}},
        {"extra_query": {"x": "PASSWORD"}},
        {"extra_body": {"provider": {"access-token": "PASSWORD"}}},
        {"X-API-Key": "PASSWORD"},
        {"db_password": "PASSWORD"},
    ],
)
def test_options_that_hold_a_secret_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(EndpointSetupError, match=r"options\..* would stand in judge names") as caught:
        Endpoint("m", options=options)
    assert "PASSWORD" not in str(caught.value)


def test_options_go_along_also_where_the_client_does_not_know_them() -> None:
    options = {"temperature": 0.5, "top_k": 4, "max_tokens": 1, "extra_body": {"min_p": 0.1, "stop_token": 3}}
    with FakeEndpoint() as fake:
        assert ask(fake, options=options)[0] == "[]"
    (body,) = fake.requests
    known = {key: body[key] for key in ("temperature", "top_k", "min_p", "stop_token")}
    assert known == {"temperature": 0.5, "top_k": 4, "min_p": 0.1, "stop_token": 3}
    assert body["max_tokens"] != 1 and "extra_body" not in body
    with pytest.raises(EndpointSetupError, match=r"options\.stream is not to be set here"):
        Endpoint("m", options={"stream": True})


def test_an_error_of_a_server_is_one_line_that_can_be_printed() -> None:
    with FakeEndpoint(otherwise=http_error(401, "\x1b[31mred\n\ud800")) as fake:
        reply, _, _ = ask(fake)
    assert "red" in str(reply) and str(reply).isprintable()


def test_no_part_of_a_key_is_left_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    for before in range(70, 80):
        with FakeEndpoint(otherwise=malformed("x" * before + "secret-1")) as fake:
            reply, _, _ = ask(fake, attempts=1)
        assert isinstance(reply, EndpointError) and "not a chat completion" in str(reply)
        assert "se" not in str(reply)


@pytest.mark.parametrize("place", ["http://[::1", "http://host]/", "", "http://h:99999/x"])
def test_a_redirect_to_no_address_is_refused_too(place: str) -> None:
    with FakeEndpoint(otherwise=redirect(place)) as fake:
        reply, endpoint, _ = ask(fake)
    assert isinstance(reply, EndpointError) and "redirects to" in str(reply)
    assert endpoint.counters == {"requests": 1, "refused_responses": 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused_by_name(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with FakeEndpoint() as elsewhere:
        away = redirect(f"{elsewhere.url}/chat/completions?token=secret-2", status)
        with FakeEndpoint(otherwise=away) as fake:
            reply, endpoint, waits = ask(fake)
        assert isinstance(reply, EndpointError) and reply.kind == "http"
        assert f"redirects to {elsewhere.url}/chat/completions," in str(reply)
        assert "secret" not in str(reply) and not elsewhere.requests and waits == []
        assert endpoint.counters == {"requests": 1, "refused_responses": 1}


BOMB = b" " * (1 << 26)


@pytest.mark.parametrize(
    "behaviour",
    [malformed(" " * 70_000), packed(BOMB), packed(BOMB, status=500), http_error(401, "x" * 70_000)],
)
def test_a_body_has_a_largest_size_also_unpacked(behaviour: Behaviour) -> None:
    with FakeEndpoint([behaviour]) as fake:
        reply, endpoint, waits = ask(fake, max_response_bytes=65_536)
        assert isinstance(reply, EndpointError) and reply.kind == "http" and waits == []
        assert "a body of more than max_response_bytes=65536" in str(reply)
        assert endpoint.counters == {"requests": 1, "refused_responses": 1}
        assert fake.headers[0]["accept-encoding"] == "identity"
        assert ask(fake, max_response_bytes=65_536)[0] == "[]"


def test_a_body_that_was_packed_unasked_is_read_where_it_can_be() -> None:
    answer = {"choices": [{"message": {"content": "hi"}}]}
    with FakeEndpoint([packed(json.dumps(answer).encode()), packed(b"{}", "br")]) as fake:
        assert ask(fake)[0] == "hi"
        assert "content-encoding 'br'" in str(ask(fake)[0])


def test_half_a_surrogate_pair_in_a_reply_becomes_a_question_mark() -> None:
    with FakeEndpoint([ok("cut \ud83d")]) as fake:
        assert ask(fake)[0] == "cut ?"
