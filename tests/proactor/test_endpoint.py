"""The endpoint against a real server that misbehaves: what is retried, what is not, what is counted."""

from __future__ import annotations

import asyncio
import builtins
import json
from typing import Any

import pytest

from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError, EndpointSetupError
from tests.proactor.fake_endpoint import (
    Behaviour,
    FakeEndpoint,
    completion,
    computed,
    dropped,
    half_json,
    http_500,
    http_error,
    malformed,
    no_sleep,
    ok,
    packed,
    rate_limit,
    redirect,
    refusing,
    timeout,
    trickle,
)

ASK = [{"role": "user", "content": "q"}]
SCHEMA = {"type": "object"}


class Waits(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def ask(fake: FakeEndpoint, **settings: Any) -> tuple[str | EndpointError, Endpoint, Waits]:
    waits = Waits()
    endpoint = Endpoint("fake", fake.url, **{"timeout": 5.0, "sleep": waits, **settings})

    async def go() -> str | EndpointError:
        try:
            return await endpoint.reply(ASK, schema=SCHEMA, seed=3, max_tokens=9)
        except EndpointError as error:
            return error
        finally:
            await endpoint.aclose()

    return asyncio.run(go()), endpoint, waits


def test_a_reply_is_its_text_and_what_was_asked_went_along() -> None:
    with FakeEndpoint([ok("hi")]) as fake:
        reply, endpoint, waits = ask(fake, options={"temperature": 0.5})
        assert (reply, waits) == ("hi", [])
        assert endpoint.counters == {"requests": 1, "replies": 1, "tokens_in": 11, "tokens_out": 7}
        body = fake.requests[0]
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        }
        assert (body["seed"], body["max_tokens"], body["temperature"], body["model"]) == (3, 9, 0.5, "fake")


@pytest.mark.parametrize(
    ("behaviour", "counter", "kind"),
    [
        (rate_limit("nonsense"), "rate_limited", "rate_limit"),
        (http_500(), "http_errors", "http"),
        (http_error(503), "http_errors", "http"),
        (dropped(), "connection_errors", "connection"),
        (malformed(), "malformed", "http"),
        (malformed("<html>"), "malformed", "http"),
        (malformed('{"choices": 3}'), "malformed", "http"),
    ],
)
def test_what_may_pass_is_tried_again_a_bounded_number_of_times(
    behaviour: Behaviour, counter: str, kind: str
) -> None:
    with FakeEndpoint([behaviour] * 2) as fake:
        reply, endpoint, waits = ask(fake)
        assert reply == "[]" and waits == [0.5, 1.0]
        assert (
            endpoint.counters[counter] == endpoint.counters["retries"] == 2
            and endpoint.counters["requests"] == 3
        )
    with FakeEndpoint([behaviour] * 3) as fake:
        reply, endpoint, _ = ask(fake)
        assert isinstance(reply, EndpointError) and reply.kind == kind and "\n" not in str(reply)
        assert len(fake.requests) == endpoint.counters["requests"] == 3


@pytest.mark.parametrize(
    ("behaviour", "kind", "counter"),
    [
        (http_error(401, "bad key"), "http", "http_errors"),
        (ok(None), "empty", "empty"),
        (ok(" \n"), "empty", "empty"),
        (malformed('{"choices": []}'), "empty", "empty"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(behaviour: Behaviour, kind: str, counter: str) -> None:
    with FakeEndpoint([behaviour]) as fake:
        reply, endpoint, waits = ask(fake)
        assert isinstance(reply, EndpointError) and reply.kind == kind
        assert endpoint.counters[counter] == 1 and endpoint.counters["retries"] == 0 and waits == []


@pytest.mark.parametrize("behaviour", [timeout(), trickle()])
def test_a_time_out_counts_from_start_to_end_and_is_not_repeated(behaviour: Behaviour) -> None:
    with FakeEndpoint([behaviour]) as fake:
        reply, endpoint, _ = ask(fake, timeout=0.2)
        assert isinstance(reply, EndpointError) and reply.kind == "timeout" and "0.2 s" in str(reply)
        assert endpoint.counters == {"requests": 1, "timeouts": 1}


def test_retry_after_is_kept_to_but_not_for_ever() -> None:
    with FakeEndpoint([rate_limit("7"), rate_limit("86400"), rate_limit("nan"), rate_limit("-3")]) as fake:
        reply, _, waits = ask(fake, attempts=5, longest_wait=20.0, backoff=0.25)
        assert reply == "[]" and waits == [7.0, 20.0, 1.0, 0.0]


def test_half_an_answer_is_given_and_counted_as_cut() -> None:
    with FakeEndpoint([half_json("[1,")]) as fake:
        reply, endpoint, _ = ask(fake)
        assert reply == "[1," and endpoint.counters["cut"] == 1


def test_a_server_without_schemas_is_asked_for_less_and_that_is_remembered() -> None:
    strict = refusing("response_format", ok("fine"), when=lambda form: form["type"] == "json_schema")
    with FakeEndpoint(otherwise=strict) as fake:
        endpoint = Endpoint("fake", fake.url)
        for _ in range(2):
            assert asyncio.run(endpoint.reply(ASK, schema=SCHEMA)) == "fine"
        assert [b["response_format"]["type"] for b in fake.requests] == [
            "json_schema",
            "json_object",
            "json_object",
        ]
        assert endpoint.counters["json_schema_refused"] == 1 and endpoint.counters["retries"] == 0
        assert asyncio.run(endpoint.reply(ASK)) == "fine" and "response_format" not in fake.requests[-1]


def test_old_and_new_servers_refuse_other_fields() -> None:
    old = refusing("response_format", refusing("seed", ok("fine")))
    with FakeEndpoint(otherwise=refusing("max_tokens", old)) as fake:
        endpoint = Endpoint("fake", fake.url)
        for _ in range(2):
            assert asyncio.run(endpoint.reply(ASK, schema=SCHEMA, seed=1, max_tokens=5)) == "fine"
        last = fake.requests[-1]
        assert (
            last["max_completion_tokens"] == 5 and not {"max_tokens", "seed", "response_format"} & last.keys()
        )
        refused = {k: v for k, v in endpoint.counters.items() if k.endswith("_refused")}
        assert refused == {
            "json_schema_refused": 1,
            "json_object_refused": 1,
            "max_tokens_refused": 1,
            "seed_refused": 1,
        }
        assert len(fake.requests) == 6


@pytest.mark.parametrize("status", [401, 403, 429, 500, 529])
@pytest.mark.parametrize(
    "body", ["key expired", '{"detail": "key expired"}', '{"message": "key expired"}', '["key expired"]']
)
def test_what_the_server_said_is_told_however_it_words_it(status: int, body: str) -> None:
    with FakeEndpoint(otherwise=malformed(body, status)) as fake:
        reply, _, _ = ask(fake, attempts=1)
    assert isinstance(reply, EndpointError) and "key expired" in str(reply)


def test_a_field_is_left_out_however_the_refusal_is_worded() -> None:
    """A list of details, as of servers that validate with pydantic."""
    details = json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]})
    with FakeEndpoint([malformed(details, 422), ok("fine")]) as fake:
        reply, endpoint, _ = ask(fake)
        assert reply == "fine" and endpoint.counters["seed_refused"] == 1
        assert "seed" not in fake.requests[1] and "response_format" in fake.requests[1]


def test_a_request_that_is_refused_in_every_form_changes_nothing() -> None:
    """Say a prompt too long for the model: the next one is asked for its schema again."""
    with FakeEndpoint([http_error(400, "too long")] * 3) as fake:
        reply, endpoint, _ = ask(fake)
        assert isinstance(reply, EndpointError) and reply.kind == "http" and "too long" in str(reply)
        assert asyncio.run(endpoint.reply(ASK, schema=SCHEMA)) == "[]"
        assert fake.requests[-1]["response_format"]["type"] == "json_schema"
        assert not any(k.endswith("_refused") for k in endpoint.counters)


def test_no_more_than_concurrency_requests_are_under_way() -> None:
    lock, now, most = __import__("threading").Lock(), [0], [0]

    def answer(body: dict[str, Any]) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        __import__("time").sleep(0.02)
        with lock:
            now[0] -= 1
        return "x"

    with FakeEndpoint(otherwise=computed(answer)) as fake:
        endpoint = Endpoint("fake", fake.url, concurrency=3)

        async def go() -> list[str]:
            return await asyncio.gather(*(endpoint.reply(ASK) for _ in range(9)))

        assert asyncio.run(go()) == ["x"] * 9
        assert most[0] == 3


def test_nobody_there_is_a_connection_error() -> None:
    with FakeEndpoint() as fake:
        url = fake.url
    endpoint = Endpoint("fake", url, sleep=no_sleep)
    with pytest.raises(EndpointError) as caught:
        asyncio.run(endpoint.reply(ASK))
    assert caught.value.kind == "connection" and endpoint.counters["connection_errors"] == 3


def test_half_a_surrogate_pair_is_sent_as_a_question_mark() -> None:
    with FakeEndpoint() as fake:
        asyncio.run(Endpoint("fake", fake.url).reply([{"role": "user", "content": "a\ud800b"}]))
        assert fake.requests[0]["messages"][0]["content"] == "a?b"


def test_the_key_comes_from_the_environment_and_is_said_by_name_when_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(EndpointSetupError, match="MY_KEY is not set"):
        asyncio.run(Endpoint("m", api_key_env="MY_KEY").reply(ASK))
    monkeypatch.setenv("MY_KEY", "secret-1")
    endpoint = Endpoint("m", "http://127.0.0.1:9/v1", api_key_env="MY_KEY", attempts=1)
    with pytest.raises(EndpointError) as caught:
        asyncio.run(endpoint.reply(ASK))
    assert "secret-1" not in f"{caught.value}{endpoint}"


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "openai":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EndpointSetupError, match=r"pip install 'proactor\[openai\]'"):
        asyncio.run(Endpoint("m", "http://127.0.0.1:9/v1").reply(ASK))


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"attempts": 0}, {"concurrency": 0}, {"backoff": -1}])
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(EndpointSetupError, match=f"endpoint m: {next(iter(settings))}="):
        Endpoint("m", **settings)


# -- secrets, redirects, bodies without an end ---


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
