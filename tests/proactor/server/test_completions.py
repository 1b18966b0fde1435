"""Texts and tokens: what comes back is the engine's, id for id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proactor.engine import Constraint, Sampling
from tests.proactor.server.served import Served, error

DRAWN: dict[str, Any] = {"model": "tiny", "prompt": "Is it?", "max_tokens": 12, "seed": 3}
IDS = [5, 80, 200]
GENERATE: dict[str, Any] = {
    "model": "one",
    "token_ids": IDS,
    "sampling_params": {"max_tokens": 12, "seed": 3, "logprobs": 1, "stop_token_ids": [7]},
}


def sampled(server: Served, prompts: list[Any], **options: Any) -> Any:
    return server.engine.sample(prompts, Sampling(max_tokens=12, seed=3, adapter=False, **options))


@pytest.mark.parametrize("prompt", ["Is it?", IDS, ["Is it?", "No."], [IDS, [9]]])
def test_completions_are_the_samples_of_the_same_seed(server: Served, prompt: Any) -> None:
    done = server.openai().completions.create(
        **{**DRAWN, "prompt": prompt}, n=2, logprobs=1, extra_body={"return_token_ids": True}
    )
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    groups = sampled(server, [prompt] if one else prompt, n=2)
    samples = [(group, sample) for group in groups for sample in group.samples]
    assert [choice.index for choice in done.choices] == list(range(len(samples)))
    for choice, (group, sample) in zip(done.choices, samples, strict=True):
        assert choice.text == sample.text and choice.token_ids == sample.token_ids  # type: ignore[attr-defined]
        assert choice.prompt_token_ids == group.prompt_ids  # type: ignore[attr-defined]
        logprobs = choice.logprobs
        assert logprobs is not None and logprobs.token_logprobs == sample.policy_logprobs
        assert logprobs.text_offset is not None and len(logprobs.text_offset) == len(sample.token_ids)
    assert done.usage is not None and done.usage.prompt_tokens == sum(len(g.prompt_ids) for g in groups)


@pytest.mark.parametrize("logprobs", [0, 4])
def test_a_stream_is_the_completion(server: Served, logprobs: int) -> None:
    client, more = server.openai(), {"n": 2, "stop": ["e", "th"], "logprobs": logprobs}
    whole = client.completions.create(**DRAWN, **more)  # type: ignore[call-overload]
    stream = client.completions.create(  # type: ignore[call-overload]
        **DRAWN, **more, stream=True, stream_options={"include_usage": True}
    )
    *chunks, end = list(stream)
    assert end.usage == whole.usage
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [t for part in parts for t in part.logprobs.tokens] == choice.logprobs.tokens
        near = [n for part in parts for n in part.logprobs.top_logprobs or ()]
        assert near == (choice.logprobs.top_logprobs or [])
        assert [o for part in parts for o in part.logprobs.text_offset] == choice.logprobs.text_offset
        assert parts[-1].finish_reason == choice.finish_reason


def test_tokens_begin_where_their_character_does(server: Served) -> None:
    pytest.importorskip("llguidance", reason="the extra `constrain` is not installed")
    schema = {"type": "string", "enum": ["für dich 😀 ab"]}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    asked = {**DRAWN, **asked, "max_tokens": 80, "logprobs": 0, "return_token_ids": True}
    [choice] = json.loads(server.ask("POST", "/v1/completions", asked)[2])["choices"]
    text, offsets = choice["text"], choice["logprobs"]["text_offset"]
    assert json.loads(text) == "für dich 😀 ab" and "😀" in text
    decode = server.engine.tokenizer.decode  # type: ignore[union-attr]
    before = [decode(choice["token_ids"][:i]).rstrip("\ufffd") for i in range(len(offsets))]
    assert offsets == [min(len(shown), len(text)) for shown in before]


def test_tokens_as_ids(server: Served) -> None:
    asked = {**DRAWN, "logprobs": 1, "return_tokens_as_token_ids": True}
    [choice] = json.loads(server.ask("POST", "/v1/completions", asked)[2])["choices"]
    [sample] = sampled(server, ["Is it?"])[0].samples
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in sample.token_ids]


def test_generate_is_the_sample_of_the_same_seed(server: Served) -> None:
    status, _, body = server.ask("POST", "/inference/v1/generate", GENERATE, {"X-Session-ID": "trace"})
    [group] = server.engine.sample([IDS], Sampling(max_tokens=12, seed=3, stop_ids=(7,)))
    [sample], answer = group.samples, json.loads(body)
    [choice] = answer["choices"]
    assert status == 200 and choice["token_ids"] == sample.token_ids
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{i}" for i in sample.token_ids]
    assert [entry["logprob"] for entry in entries] == sample.policy_logprobs
    assert choice["finish_reason"] == ("stop" if sample.finish_reason == "stop" else "length")
    assert answer["policy_version"] == server.engine.policy_version and answer["request_id"]


def test_generate_takes_what_verifiers_sends_along(server: Served) -> None:
    asked = {
        **GENERATE,
        "cache_salt": "a",
        "priority": 3,
        "sampling_params": {
            **GENERATE["sampling_params"],
            "skip_special_tokens": False,
            "top_k": -1,
            "repetition_penalty": 1.0,
            "routed_experts_prompt_start": 0,
        },
    }
    choices = [
        json.loads(server.ask("POST", "/inference/v1/generate", body)[2])["choices"]
        for body in (asked, GENERATE)
    ]
    assert choices[0] == choices[1]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/completions", {"model": "tiny"}, "prompt is needed"),
        ("/v1/completions", {**DRAWN, "prompt": []}, "a text, token ids, or a list"),
        ("/v1/completions", {**DRAWN, "prompt": {"a": 1}}, "a text, token ids, or a list"),
        ("/v1/completions", {**DRAWN, "prompt": [IDS, "x"]}, "a text, token ids, or a list"),
        ("/v1/completions", {**DRAWN, "prompt": [1, 10**9]}, "id 1000000000 at position 1"),
        ("/v1/completions", {**DRAWN, "prompt": ["a"] * 65}, "65 samples"),
        ("/v1/completions", {**DRAWN, "echo": True, "logprobs": 0}, "echo with logprobs"),
        ("/v1/completions", {**DRAWN, "logprobs": 21}, "logprobs=21"),
        ("/v1/completions", {**DRAWN, "n": 3, "best_of": 2}, "best_of=2: should be n=3 or more"),
        ("/v1/completions", {**DRAWN, "best_of": 2, "stream": True}, "best_of beyond n: not with stream"),
        ("/v1/completions", {**DRAWN, "best_of": 65}, "65 samples"),
        ("/v1/completions", {**DRAWN, "stop": [""]}, "stop"),
        ("/inference/v1/generate", {"sampling_params": {}}, "token_ids and sampling_params"),
        ("/inference/v1/generate", {**GENERATE, "sampling_params": 3}, "an object"),
        ("/inference/v1/generate", {**GENERATE, "features": {}}, "features: not known"),
        ("/inference/v1/generate", {**GENERATE, "token_ids": [-1]}, "id -1 at position 0"),
        ("/inference/v1/generate", {**GENERATE, "sampling_params": {"bad": 1}}, "unknown option 'bad'"),
        ("/inference/v1/generate", {**GENERATE, "token_ids": []}, "empty"),
    ],
)
def test_what_is_refused(server: Served, path: str, body: Any, said: str) -> None:
    status, _, answer = server.ask("POST", path, body)
    assert status == 400 and said in error(answer)["message"], answer


def test_a_request_out_of_time(server: Served) -> None:
    for path, body in (
        ("/v1/completions", {**DRAWN, "max_tokens": 900, "timeout": 0}),
        ("/inference/v1/generate", {**GENERATE, "sampling_params": {"max_tokens": 900, "timeout": 0}}),
    ):
        status, _, answer = server.ask("POST", path, body)
        assert status == 504 and error(answer)["type"] == "timeout_error"


# -- what a text keeps to, and what is shown of it ---

DAY = {
    "type": "object",
    "properties": {"day": {"enum": ["Friday", "Sunday"]}},
    "required": ["day"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "day", "schema": DAY}}


def test_a_text_keeps_to_the_format_as_an_answer_does(server: Served) -> None:
    pytest.importorskip("llguidance", reason="the extra `constrain` is not installed")
    asked = {**DRAWN, "max_tokens": 80, "n": 4, "response_format": FORMAT}
    choices = json.loads(server.ask("POST", "/v1/completions", asked)[2])["choices"]
    wanted = server.engine.sample(
        ["Is it?"],
        Sampling(n=4, max_tokens=80, seed=3, adapter=False, constraint=Constraint(json_schema=DAY)),
    )
    assert [choice["text"] for choice in choices] == [sample.text for sample in wanted[0].samples]
    for choice in choices:
        assert choice["finish_reason"] == "stop" and json.loads(choice["text"])["day"] in ("Friday", "Sunday")
    messages = [{"role": "user", "content": "Is it?"}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 80, "seed": 3, "response_format": FORMAT}
    [choice] = json.loads(server.ask("POST", "/v1/chat/completions", chat)[2])["choices"]
    assert json.loads(choice["message"]["content"])["day"] in ("Friday", "Sunday")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format: should be {'type': 'text'}"),
        ({"response_format": {"type": "json_schema"}}, "needs json_schema"),
        ({"response_format": "json"}, "response_format='json'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "at its root"),
        ({"guided_json": DAY}, "guided_json: not known here; response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs: not known here; response_format"),
        ({"stream_options": {"continuous_usage_stats": True}}, "continuous_usage_stats=True"),
        ({"logit_bias": {"5": 1}}, "unknown option 'logit_bias'"),
        ({"presence_penalty": 1}, "presence_penalty=1"),
    ],
)
def test_what_both_refuse_by_name(server: Served, path: str, change: dict[str, Any], said: str) -> None:
    body = {**DRAWN, **change}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    if "at its root" in said:
        pytest.importorskip("llguidance", reason="the extra `constrain` is not installed")
    for streamed in (False, True):
        status, _, answer = server.ask("POST", path, {**body, "stream": streamed})
        told = error(answer)["message"]
        assert status == 400 and said in told and "\n" not in told, answer


def test_the_most_probable_tokens_are_those_of_the_sample(server: Served) -> None:
    asked = {**DRAWN, "logprobs": 3, "return_tokens_as_token_ids": True}
    [choice] = json.loads(server.ask("POST", "/v1/completions", asked)[2])["choices"]
    [sample] = sampled(server, ["Is it?"], top_logprobs=3)[0].samples
    for near, tops, token, logprob in zip(
        choice["logprobs"]["top_logprobs"],
        sample.top_logprobs,
        sample.token_ids,
        sample.policy_logprobs,
        strict=True,
    ):
        assert near == {f"token_id:{i}": value for i, value in [*tops, (token, logprob)]}
    plain = json.loads(server.ask("POST", "/v1/completions", {**DRAWN, "logprobs": 0})[2])["choices"][0]
    assert plain["logprobs"]["top_logprobs"] is None


def test_the_best_of_several_come_first(server: Served) -> None:
    done = server.openai().completions.create(**DRAWN, n=2, best_of=6, extra_body={"return_token_ids": True})
    samples = sampled(server, ["Is it?"], n=6)[0].samples

    def mean(sample: Any) -> float:
        return sum(sample.policy_logprobs) / len(sample.policy_logprobs)

    best = sorted(samples, key=mean, reverse=True)[:2]
    assert [choice.token_ids for choice in done.choices] == [sample.token_ids for sample in best]  # type: ignore[attr-defined]
    assert done.usage is not None and done.usage.completion_tokens == sum(len(s.token_ids) for s in samples)


@pytest.mark.parametrize("prompt", ["Is it?", IDS, ["Is it?", "No."]])
def test_an_echo_begins_with_the_prompt(server: Served, prompt: Any) -> None:
    client, asked = server.openai(), {**DRAWN, "prompt": prompt, "n": 2}
    plain = client.completions.create(**asked)
    echoed = client.completions.create(**asked, echo=True)
    prompts = prompt if isinstance(prompt[0], str) and isinstance(prompt, list) else [prompt]
    texts = [p if isinstance(p, str) else server.engine.tokenizer.decode(p) for p in prompts]  # type: ignore[union-attr]
    wanted = [texts[choice.index // 2] + choice.text for choice in plain.choices]
    assert [choice.text for choice in echoed.choices] == wanted
    parts: dict[int, str] = {}
    for chunk in client.completions.create(**asked, echo=True, stream=True):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + choice.text
    assert [parts[i] for i in range(len(wanted))] == wanted
