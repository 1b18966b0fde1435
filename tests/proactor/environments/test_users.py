"""The model that plays users: how a config names it, what it answers, and what is counted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proactor.endpoint_errors import EndpointError, EndpointSetupError
from proactor.environments.clock import Clock
from proactor.environments.errors import GymError
from proactor.environments.users import EndpointUser, EngineUser, build_user
from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.proactor.fake_endpoint import FakeEndpoint, computed, rate_limit


def test_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_user("engine"), EngineUser)
    policy = build_user({"kind": "engine", "model": "policy", "max_tokens": 8})
    assert isinstance(policy, EngineUser) and (policy.model, policy.max_tokens) == ("policy", 8)
    monkeypatch.setenv("MY_KEY", "k")
    spec = {"kind": "endpoint", "model": "m", "api_key_env": "MY_KEY", "options": {"top_p": 0.5}}
    endpoint = build_user(spec)
    assert isinstance(endpoint, EndpointUser)
    assert endpoint.endpoint.options == {"temperature": 0.0, "top_p": 0.5}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("human", "user: 'human' is not one of engine, endpoint"),
        ({"model": "m"}, "user: None is not one of"),
        ({"kind": ["engine"]}, "user: .* is not one of"),
        ({"kind": "engine", "model": "mine"}, "user engine: model 'mine' is not one of base, policy"),
        ({"kind": "engine", "max_tokens": 0}, "user: max_tokens 0"),
        ({"kind": "endpoint", "model": "m", "base_url": "http://x", "max_tokens": -1}, "user: max_tokens -1"),
        ({"kind": "engine", "modle": "base"}, "user engine: .*'modle'"),
        ({"kind": "endpoint"}, "user endpoint: missing 1 required"),
    ],
)
def test_mistakes(spec: Any, said: str) -> None:
    with pytest.raises(GymError, match=said):
        build_user(spec)


def test_an_endpoint_without_its_key_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EndpointSetupError, match="NO_SUCH_KEY is not set"):
        build_user({"kind": "endpoint", "model": "m", "api_key_env": "NO_SUCH_KEY"})


def test_the_engine_answers_greedily_with_the_adapter_off(tmp_path: Path) -> None:
    engine = load(save_chat_model(tmp_path / "model", context=512), kv_tokens=2048)
    base, policy = EngineUser(max_tokens=6), EngineUser("policy", max_tokens=6)
    with pytest.raises(GymError, match="bind"):
        base.reply("Is it red?")
    for user in (base, policy):
        user.bind(engine)
    said = base.reply("Is it red?")
    assert said and said == base.reply("Is it red?") != policy.reply("Is it red?")
    messages = [{"role": "user", "content": "Is it red?"}]
    bare = engine.openai().chat.completions.create(
        model="base", messages=messages, temperature=0, max_tokens=6
    )
    assert said == bare.choices[0].message.content
    base.note_nonsense()
    counts = base.counters
    assert (counts["requests"], counts["replies"], counts["nonsense"]) == (2, 2, 1)
    assert counts["tokens_in"] == 2 * bare.usage.prompt_tokens and counts["tokens_out"] <= 12
    assert base.seconds > 0


def test_an_endpoint_answers_many_threads() -> None:
    def answer(body: dict[str, Any]) -> str:
        assert (body["temperature"], body["seed"]) == (0, 0)
        return f"said {body['messages'][0]['content']}"

    with FakeEndpoint([rate_limit()], otherwise=computed(answer)) as fake:
        user = build_user({"kind": "endpoint", "model": "m", "base_url": fake.url, "backoff": 0.01})
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(user.reply, map(str, range(16))))
        user.close()
    assert said == [f"said {i}" for i in range(16)]
    counts = user.counters
    assert (counts["requests"], counts["retries"], counts["tokens_in"]) == (17, 1, 16 * 11)
    assert not any(thread.name == "user" for thread in threading.enumerate())


def test_an_endpoint_answers_without_its_thought() -> None:
    """Its draft is no answer, and what was cut off while it thought is none either."""
    answers = {
        "whole": "<think>A perfect answer gets [1].</think>\n[0]",
        "begun by the template": "Could it be yes? It is a stone.</think> No.",
        "cut": "<think>It would be accepted",
        "plain": "[0]",
    }
    with FakeEndpoint(otherwise=computed(lambda body: answers[body["messages"][0]["content"]])) as fake:
        user = build_user({"kind": "endpoint", "model": "m", "base_url": fake.url})
        assert [user.reply(question) for question in answers] == ["[0]", "No.", "", "[0]"]
        user.close()


def test_an_endpoint_says_how_long_an_answer_may_take() -> None:
    fields = {"model": "m", "base_url": "http://x", "timeout": 10, "attempts": 3, "longest_wait": 4}
    user = build_user({"kind": "endpoint", **fields})
    assert user.patience == 38 and build_user("engine").patience == 0


def test_questions_to_an_endpoint_stand_in_line_outside_the_limit() -> None:
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.4)
        return "yes"

    with FakeEndpoint(otherwise=computed(slow)) as fake:
        user = build_user({"kind": "endpoint", "model": "m", "base_url": fake.url, "concurrency": 1})
        clocks = [Clock(1.2) for _ in range(5)]

        def ask(clock: Clock) -> float:
            with clock.here():
                user.reply("?")
            return clock.left()

        with ThreadPoolExecutor(5) as pool:
            left = list(pool.map(ask, clocks))
        user.close()
    assert min(left) > 0, "five answers of 0.4 s take 2 s"


def test_an_endpoint_that_fails_raises_in_one_line() -> None:
    with FakeEndpoint(otherwise=computed(lambda body: "")) as fake:
        user = build_user({"kind": "endpoint", "model": "m", "base_url": fake.url})
        with pytest.raises(EndpointError, match="without text"):
            user.reply("?")
        user.close()
    assert user.counters["empty"] == 1 and user.counters["replies"] == 0
