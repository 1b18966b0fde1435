"""OpenAI's client without a socket: what judges, simulated users and environments see of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from proactor.engine import Engine, EngineError, LoRA, Sampling, ToolChat
from tests.engine.engines import TRAIN, load, reward, shake
from tests.engine.openai_calls import ASK, TOOL, create, forced, said


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Engine:
    return load(chat_folder, kv_tokens=4096)


# -- what comes back ---


def test_a_completion_is_the_engines_sample(engine: Engine) -> None:
    client = engine.openai()
    done = create(client, n=2, temperature=1.0, seed=5, logprobs=True)
    ids = ToolChat(engine.chat).opening(ASK)  # type: ignore[arg-type]
    [group] = engine.sample([ids], Sampling(n=2, max_tokens=8, seed=5, adapter=False))
    assert said(done) == [sample.token_ids for sample in group.samples] and done.prompt_token_ids == ids
    assert [choice.message.content for choice in done.choices] == [s.text for s in group.samples]
    for choice, sample in zip(done.choices, group.samples, strict=True):
        assert choice.finish_reason == ("stop" if sample.finish_reason == "stop" else "length")
        assert [token.logprob for token in choice.logprobs.content] == pytest.approx(sample.policy_logprobs)
    drawn = sum(len(sample.token_ids) for sample in group.samples)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), drawn)
    assert done.usage.total_tokens == len(ids) + drawn and done.system_fingerprint == "base"
    assert client.counters == {"requests": 1, "replies": 2, "tokens_in": len(ids), "tokens_out": drawn}


def test_the_bytes_of_log_probabilities_are_those_of_the_text(engine: Engine) -> None:
    """A character of several tokens has a part of its bytes in each, and is whole in none."""
    text = "für dich 😀 ab"
    [choice] = create(forced(engine, text), max_tokens=80, logprobs=True, top_logprobs=1).choices
    entries = [entry for entry in choice.logprobs.content if not entry.token.startswith("<|")]
    assert choice.message.content == text and len(entries) > len(text)
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == text
    tops = [top for entry in entries for top in entry.top_logprobs]
    assert tops and all(bytes(top.bytes).decode(errors="replace") == top.token for top in tops)
    assert any(entry.token == "\ufffd" for entry in entries)


def same(ours: Any, theirs: Any) -> None:
    """Every attribute of an object of OpenAI's package is one of ours, or None."""
    if isinstance(theirs, list):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(theirs, BaseModel):
        for name in type(theirs).model_fields:
            same(getattr(ours, name, None), getattr(theirs, name))
    else:
        assert ours == theirs


def test_the_objects_are_openais(engine: Engine) -> None:
    chat = pytest.importorskip("openai.types.chat")
    call = '<tool_call>\n{"name": "weather", "arguments": {"day": "Friday"}}\n</tool_call>'
    clients = (engine.openai(), {"logprobs": True}), (forced(engine, call), {"tools": [TOOL]})
    for client, more in clients:
        ours = create(client, max_tokens=80, **more)
        theirs = chat.ChatCompletion.model_validate(ours.to_dict())
        assert chat.ChatCompletion.model_validate_json(ours.to_json()) == theirs
        same(ours, theirs)
        message = chat.ChatCompletionMessage.model_validate(ours.choices[0].message.model_dump())
        assert create(engine.openai(), messages=[*ASK, message]).choices


def test_calls_and_the_conversation_that_goes_on(engine: Engine) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"day": "Fr\\u00fch"}}\n</tool_call>'
    client = forced(engine, f"<think>\nhm\n</think>\n\nI look.\n{call}")
    done = create(client, tools=[TOOL], max_tokens=200)
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    assert (message.content, message.reasoning_content) == ("I look.", "hm")
    [called] = message.tool_calls
    assert called.function.name == "weather" and json.loads(called.function.arguments) == {"day": "Früh"}
    assert client.counters["calls"] == client.counters["text_around"] == 1
    result = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    plain = {"role": "assistant", "content": "I look.", "tool_calls": [called.model_dump()]}
    assert (
        create(engine.openai(), messages=[*ASK, message, result]).prompt_token_ids
        == create(engine.openai(), messages=[*ASK, plain, result]).prompt_token_ids
    )


def test_what_was_asked_for_comes(engine: Engine) -> None:
    """A model of random weights calls what it must, and answers in JSON."""
    pytest.importorskip("llguidance")
    client, day = engine.openai(), {"enum": ["Friday", "Sunday"]}
    schema = {
        "type": "object",
        "properties": {"day": day},
        "required": ["day"],
        "additionalProperties": False,
    }
    tools = [{"name": name, "parameters": schema} for name in ("weather", "other")]
    hot = {"temperature": 1.0, "n": 3, "max_tokens": 150, "tools": tools, "parallel_tool_calls": False}
    asked = {"type": "function", "function": {"name": "other"}}
    for choice, names in (("required", {"weather", "other"}), (asked, {"other"})):
        for answer in create(client, **hot, tool_choice=choice).choices:
            [call] = answer.message.tool_calls
            assert answer.finish_reason == "tool_calls" and answer.message.content is None
            assert call.function.name in names
            assert json.loads(call.function.arguments)["day"] in day["enum"]
    wanted = {"type": "json_schema", "json_schema": {"name": "day", "schema": schema, "strict": True}}
    for answer in create(client, **hot, tool_choice="none", response_format=wanted).choices:
        assert json.loads(answer.message.content)["day"] in day["enum"] and answer.finish_reason == "stop"
    for answer in create(
        client, temperature=1.0, n=3, max_tokens=200, response_format={"type": "json_object"}
    ).choices:
        assert answer.message.content.startswith("{")
    assert client.counters["tool_choice_unmet"] == client.counters["broken_json"] == 0


def test_what_was_asked_for_and_was_cut_is_counted(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    client = engine.openai()
    create(client, tools=[TOOL], tool_choice="required", max_tokens=9)
    create(client, response_format={"type": "json_object"}, max_tokens=1)
    assert client.counters["tool_choice_unmet"] == client.counters["json_unmet"] == 1
    client = forced(engine, '<tool_call>\n{"name": "weather"}\n</tool_call>')
    quiet = create(client, tools=[TOOL], tool_choice="none", max_tokens=99).choices[0]
    assert quiet.message.tool_calls is None and "weather" in quiet.message.content
    assert client.counters["tool_choice_unmet"] == 0
    broken = create(
        forced(engine, "<tool_call>\n{broken\n</tool_call>"), tools=[TOOL], max_tokens=99
    ).choices[0]
    assert broken.message.content.startswith("<tool_call>") and not broken.message.tool_calls


def test_stop_strings(engine: Engine) -> None:
    for more in ({}, {"tools": [TOOL]}):
        choice = create(forced(engine, "one. two."), stop=". t", max_tokens=99, **more).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("one", "stop")


# -- which weights ---


def test_the_base_stays_as_it_is_and_the_policy_learns(chat_folder: Path) -> None:
    """A judge on the base model must not change with what it judges."""
    engine = load(chat_folder, kv_tokens=4096, deterministic=True)
    client = engine.openai(aliases={"gpt-4o": "base"})
    before = {name: create(client, model=name, max_tokens=24, logprobs=True) for name in client.models}
    assert said(before["base"]) != said(before["policy"])
    engine.train(reward(engine.sample([ASK], Sampling(n=4, max_tokens=6, ignore_eos=True))), TRAIN)
    after = {name: create(client, model=name, max_tokens=24, logprobs=True) for name in client.models}
    for name in ("base", "gpt-4o", str(chat_folder)):
        assert said(after[name]) == said(before["base"])
        assert after[name].choices[0].logprobs == before["base"].choices[0].logprobs
        assert after[name].system_fingerprint == "base"
    assert after["policy"].choices[0].logprobs != before["policy"].choices[0].logprobs
    assert [done["policy"].system_fingerprint for done in (before, after)] == ["policy-1", "policy-2"]


# -- noise ---


def test_noise(engine: Engine) -> None:
    hot = {"temperature": 1.0, "max_tokens": 12}
    client = engine.openai()
    assert said(create(client, **hot)) != said(create(client, **hot))
    assert said(create(client, **hot, seed=3)) == said(create(client, **hot, seed=3))
    one, other = client.with_options(seed=7), client.with_options(seed=7)
    first = [said(create(one, **hot)) for _ in range(3)]
    assert [said(create(other, **hot)) for _ in range(3)] == first and first[0] != first[1]
    fourth = said(create(client.with_options(seed=7), **hot, seed=None)) and said(create(other, **hot))
    assert said(create(one.with_options(timeout=60), **hot)) == fourth not in first, "its count goes on"
    assert one.counters is client.counters


# -- several adapters ---


def test_every_adapter_is_a_model(chat_folder: Path) -> None:
    engine = load(chat_folder, lora={"agent": LoRA(rank=4), "judge": LoRA(rank=2)}, kv_tokens=4096)
    shake(engine, 3, adapter="judge")
    client = engine.openai(aliases={"gpt-4o": "judge"})
    assert client.models == ("base", "policy", "agent", "judge", str(chat_folder), "gpt-4o")
    done = {name: create(client, model=name, max_tokens=24) for name in client.models}
    assert said(done["policy"]) == said(done["agent"]) != said(done["judge"]) == said(done["gpt-4o"])
    named = {name: answer.system_fingerprint for name, answer in done.items()}
    assert named["policy"] == named["agent"] == "agent-1" and named["judge"] == "judge-1"
    with pytest.raises(EngineError, match="alias 'x' stands for 'user', which is none of"):
        engine.openai(aliases={"x": "user"})


# -- refused ---


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "gpt-4o"}, "model 'gpt-4o' is none of 'base', 'policy'"),
        ({"model": None}, "model=… is needed"),
        ({"messages": None}, "messages=… is needed"),
        ({"messages": []}, "without messages"),
        ({"stream": True}, "stream=True"),
        ({"top_logprobs": 21}, "top_logprobs=21"),
        ({"n": 0}, "n=0"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5"),
        ({"logit_bias": {1: 2}}, "unknown option 'logit_bias'"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format: of type json_schema needs"),
        ({"tool_choice": {"type": "function"}}, "tool_choice: should be"),
        ({"tool_choice": "required"}, "tool_choice: no tool"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice: no tool 'other'"),
        ({"extra_body": {"top_k": -2}}, "top_k=-2"),
        ({"extra_body": {"top_q": 1}}, "unknown option 'top_q'"),
        ({"extra_body": [1]}, "extra_body: an object of fields, not list"),
        ({"extra_body": "abc"}, "extra_body: an object of fields, not str"),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, "leave no room"),
        ({"tools": [{}]}, "tool 1"),
    ],
)
def test_refused(engine: Engine, changes: dict[str, Any], error: str) -> None:
    with pytest.raises(EngineError, match=error) as caught:
        create(engine.openai(), **changes)
    assert "\n" not in str(caught.value)


def test_what_is_not_given_and_what_changes_nothing_is_taken(engine: Engine) -> None:
    class NotGiven:
        """As OpenAI's."""

    more = {"stop": NotGiven(), "tools": None, "user": "me", "extra_headers": {"a": "b"}, "stream": False}
    for off in (0, -1):
        assert said(create(engine.openai(), **more, extra_body={"top_k": off})) == said(
            create(engine.openai())
        )
    assert create(engine.openai(), max_tokens=None, max_completion_tokens=2).usage.completion_tokens <= 2


def test_refused_clients(folder: Path, engine: Engine) -> None:
    with pytest.raises(EngineError, match="no tokenizer"):
        load(folder).openai()
    with pytest.raises(EngineError, match="alias 'a' stands for 'b'"):
        engine.openai(aliases={"a": "b"})
    with pytest.raises(EngineError, match="seed should be an integer"):
        engine.openai().with_options(seed=True)
    with pytest.raises(EngineError, match="timeout -1 is not a number of seconds"):
        engine.openai().with_options(timeout=-1)


# -- a judge written for OpenAI's client ---


def grade(client: Any, model: str, question: str, tries: int = 3) -> tuple[float, int]:
    """As the judges of UserRL's gyms go about it: (score, tries that were needed)."""
    for attempt in range(1, tries + 1):
        response = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": 'Answer with JSON: {"score": number}'},
                {"role": "user", "content": question},
            ],
            temperature=0.0,
            max_tokens=64,
            response_format={"type": "json_object"},
            timeout=60,
        )
        try:
            return float(json.loads(response.choices[0].message.content.strip())["score"]), attempt
        except (json.JSONDecodeError, KeyError, ValueError):
            continue
    return 0.0, tries


def test_a_judge_for_openais_client_runs_unmodified(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    assert grade(forced(engine, '{"score": 0.7}'), "base", "good?") == (0.7, 1)
    client = forced(engine, '{"mark": 1}')
    assert grade(client, "base", "good?") == (0.0, 3) and client.counters["json_unmet"] == 0
