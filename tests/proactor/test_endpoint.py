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
    ASK,
    SCHEMA,
    Behaviour,
    FakeEndpoint,
    ask,
    computed,
    dropped,
    half_json,
    http_500,
    http_error,
    malformed,
    no_sleep,
    ok,
    rate_limit,
    refusing,
    timeout,
    trickle,
)


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
