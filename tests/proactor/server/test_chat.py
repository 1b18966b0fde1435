"""OpenAI's client asks the server, and gets what the engine says in process."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from proactor.engine import Sampling, ToolChat
from tests.proactor.server.served import ASK, Served, error

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
DRAWN: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 16, "seed": 5}


def test_an_answer_is_the_sample_of_the_same_seed(server: Served) -> None:
    done = server.openai().chat.completions.create(
        **DRAWN,
        n=2,
        logprobs=True,
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True},
    )
    ids = ToolChat(server.engine.chat).opening(ASK)  # type: ignore[arg-type]
    [group] = server.engine.sample([ids], Sampling(n=2, max_tokens=16, seed=5, adapter=False))
    assert done.prompt_token_ids == ids and done.model == "tiny"  # type: ignore[attr-defined]
    assert done.policy_version == -1 and done.system_fingerprint == "base"  # type: ignore[attr-defined]
    for choice, sample in zip(done.choices, group.samples, strict=True):
        assert choice.message.content == sample.text
        assert choice.token_ids == sample.token_ids  # type: ignore[attr-defined]
        assert choice.logprobs is not None and choice.logprobs.content is not None
        entries = [(entry.token, entry.logprob) for entry in choice.logprobs.content]
        names = [f"token_id:{token}" for token in sample.token_ids]
        assert entries == list(zip(names, sample.policy_logprobs, strict=True))
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (
        len(ids),
        sum(len(s.token_ids) for s in group.samples),
    )


def test_the_most_probable_tokens_are_those_of_the_sample(server: Served) -> None:
    asked = {**DRAWN, "logprobs": True, "top_logprobs": 4}
    ids = ToolChat(server.engine.chat).opening(ASK)  # type: ignore[arg-type]
    sampling = Sampling(max_tokens=16, seed=5, adapter=False, top_logprobs=4)
    [sample] = server.engine.sample([ids], sampling)[0].samples
    for by_id in (False, True):
        options = {"return_tokens_as_token_ids": by_id}
        _, _, body = server.ask("POST", "/v1/chat/completions", {**asked, **options})
        entries = json.loads(body)["choices"][0]["logprobs"]["content"]
        found = [[(top["token"], top["logprob"]) for top in entry["top_logprobs"]] for entry in entries]
        name = (lambda i: f"token_id:{i}") if by_id else (lambda i: server.engine.tokenizer.decode([i]))
        assert found == [[(name(i), value) for i, value in tops] for tops in sample.token_tops()]
        assert all(top.keys() == {"token", "logprob", "bytes"} for e in entries for top in e["top_logprobs"])


def test_ids_are_shown_on_request_alone(server: Served) -> None:
    status, _, body = server.ask("POST", "/v1/chat/completions", {**DRAWN, "logprobs": True})
    assert status == 200 and "token_ids" not in body and "token_id:" not in body
    choice = json.loads(body)["choices"][0]
    assert choice["message"]["role"] == "assistant" and len(choice["logprobs"]["content"]) > 0


def test_a_stream_is_the_answer(server: Served) -> None:
    client = server.openai()
    more: dict[str, Any] = {
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": "e",
        "extra_body": {"return_token_ids": True},
    }
    whole = client.chat.completions.create(**DRAWN, **more)
    stream = client.chat.completions.create(
        **DRAWN, **more, stream=True, stream_options={"include_usage": True}
    )
    *chunks, end = list(stream)
    assert end.usage == whole.usage and not end.choices and len(chunks) > 2
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [i for p in parts for i in p.token_ids] == choice.token_ids  # type: ignore[attr-defined]
        logprobs = [entry for part in parts for entry in (part.logprobs.content or ())]  # type: ignore[union-attr]
        assert choice.logprobs is not None and logprobs == choice.logprobs.content
        assert [part.finish_reason for part in parts][-1] == choice.finish_reason
    silent = list(client.chat.completions.create(**DRAWN, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in silent)


def test_the_events_of_a_stream_end_with_done(server: Served) -> None:
    status, headers, body = server.ask("POST", "/v1/chat/completions", {**DRAWN, "stream": True})
    events = body.split("\n\n")
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: {") for event in events[:-2])


def test_the_adapter_by_its_name(server: Served) -> None:
    client, ids = server.openai(), ToolChat(server.engine.chat).opening(ASK)  # type: ignore[arg-type]
    done = client.chat.completions.create(**{**DRAWN, "model": "one"})
    [group] = server.engine.sample([ids], Sampling(max_tokens=16, seed=5))
    assert (done.choices[0].message.content, done.model) == (group.samples[0].text, "one")
    assert done.policy_version == server.engine.policy_version  # type: ignore[attr-defined]
    assert done.choices[0] != client.chat.completions.create(**DRAWN).choices[0]


def test_tools_are_read(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"day": "Friday"}}\n</tool_call>'
    ids = server.engine.chat.encode_answer(text)  # type: ignore[union-attr]
    force(monkeypatch, server, ids)
    client = server.openai()
    asked: dict[str, Any] = {**DRAWN, "max_tokens": 200, "tools": [TOOL]}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "I look." and message.tool_calls is not None
    [call] = message.tool_calls
    assert call.function.name == "weather"  # type: ignore[union-attr]
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.content == "I look."
    [streamed] = final.message.tool_calls or ()
    assert json.loads(streamed.function.arguments) == {"day": "Friday"} and streamed.id == call.id


def force(monkeypatch: pytest.MonkeyPatch, server: Served, ids: list[int]) -> None:
    """Let the model say these tokens and nothing else."""
    import torch

    from proactor.engine import ChatRequest

    def only(_: list[int], position: int) -> torch.Tensor:
        return torch.arange(server.engine.config.vocab_size) == ids[min(position, len(ids) - 1)]

    sampling = ChatRequest.sampling
    monkeypatch.setattr(
        ChatRequest,
        "sampling",
        lambda self, *given: sampling(self, *given).model_copy(update={"logit_mask": only}),
    )


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt"}, 404, "model 'gpt' is none of 'tiny', 'one'"),
        ({"model": "../tiny"}, 404, "none of"),
        ({"model": None}, 404, "none of"),
        ({"messages": None}, 400, "messages=… is needed"),
        ({"messages": [{"role": "king", "content": "?"}]}, 400, "role"),
        ({"messages": ASK * 200}, 400, "leave no room in a context of 1024"),
        ({"temprature": 1}, 400, "did you mean 'temperature'?"),
        ({"temperature": -1}, 400, "temperature=-1"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs=21"),
        ({"top_logprobs": 3}, 400, "top_logprobs: needs logprobs: true"),
        ({"n": 65}, 400, "65 samples in one request, the server draws 64"),
        ({"n": "1000000"}, 400, "1000000 samples in one request"),
        ({"logit_mask": "x"}, 400, "logit_mask"),
        ({"stream": "perhaps"}, 400, "stream='perhaps'"),
        ({"stream": True, "temperature": -1}, 400, "temperature=-1"),
        ({"stream": True, "model": "gpt"}, 404, "none of"),
        ({"stream": True, "messages": ASK * 200}, 400, "leave no room"),
        ({"timeout": 0, "max_tokens": 900}, 504, "no answer in time"),
    ],
)
def test_what_is_refused(server: Served, change: dict[str, Any], status: int, said: str) -> None:
    got, _, body = server.ask("POST", "/v1/chat/completions", {**DRAWN, **change})
    assert got == status and said in error(body)["message"], body


def test_errors_are_those_of_openais_client(server: Served) -> None:
    client = server.openai()
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**DRAWN, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.chat.completions.create(**{**DRAWN, "model": "gpt"})
    stream = client.chat.completions.create(**{**DRAWN, "max_tokens": 900}, stream=True, timeout=9)
    assert next(iter(stream)).choices
    stream.close()


def test_a_stream_that_runs_out_of_time_says_so_and_is_not_done(server: Served) -> None:
    asked = {**DRAWN, "max_tokens": 900, "stream": True, "timeout": 0.3}
    _, _, body = server.ask("POST", "/v1/chat/completions", asked)
    assert "[DONE]" not in body
    assert "no answer in time" in body.split("\n\n")[-2] or error(body)["type"] == "timeout_error"
