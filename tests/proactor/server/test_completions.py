"""Texts and tokens: what comes back is the engine's, id for id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proactor.engine import Sampling
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


def test_a_stream_is_the_completion(server: Served) -> None:
    client, more = server.openai(), {"n": 2, "stop": ["e", "th"], "logprobs": 0}
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
        assert parts[-1].finish_reason == choice.finish_reason


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
        ("/v1/completions", {**DRAWN, "echo": True}, "echo=True"),
        ("/v1/completions", {**DRAWN, "logprobs": 5}, "logprobs=5"),
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
