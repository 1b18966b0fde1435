"""OpenAI's client without a socket: a completion in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proactor.engine import ChatRequest, Engine, RequestTimeout
from tests.engine.engines import idle, load
from tests.engine.openai_calls import GREEDY, TOOL, create, forced
from tests.engine.sessions import run


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Engine:
    return load(chat_folder, kv_tokens=4096)


async def streamed(engine: Engine, client: Any = None, **changes: Any) -> list[Any]:
    client = client or engine.openai()
    request = ChatRequest.of({**GREEDY, **changes})
    return [chunk async for chunk in client.asynchronous.chat.completions.stream(request)]


@pytest.mark.parametrize("more", [{}, {"stop": "e"}, {"tools": [TOOL]}, {"logprobs": True}])
def test_the_chunks_of_a_completion_are_the_completion(engine: Engine, more: dict[str, Any]) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 24, **more}
    whole, (*chunks, end) = create(engine.openai(), **fields), run(streamed(engine, **fields))
    assert end.usage == whole.usage and not end.choices
    assert {chunk.id for chunk in chunks} == {end.id} and chunks[0].prompt_token_ids == whole.prompt_token_ids
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [i for part in parts for i in part.token_ids] == choice.token_ids
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        assert parts[0].delta.role == "assistant"
        if choice.logprobs is not None:
            logprobs = [entry for part in parts for entry in part.logprobs.content]
            assert [entry.token for entry in logprobs] == [entry.token for entry in choice.logprobs.content]


def test_calls_in_chunks(engine: Engine) -> None:
    call = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"day": "Friday"}}\n</tool_call>'
    client = forced(engine, call)
    whole = create(client, tools=[TOOL], max_tokens=200)
    *chunks, _ = run(streamed(engine, tools=[TOOL], max_tokens=200, logit_mask=client.mask))
    [last] = [c for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert (last.finish_reason, last.delta.content) == ("tool_calls", "I look.")
    [called], [expected] = last.delta.tool_calls, whole.choices[0].message.tool_calls
    assert (called.index, called.id, called.function) == (0, expected.id, expected.function)


def test_a_stream_out_of_time_and_one_that_is_left(engine: Engine) -> None:
    with pytest.raises(RequestTimeout, match="no answer in time"):
        run(streamed(engine, max_tokens=900, timeout=0.0))

    async def leave() -> None:
        request = ChatRequest.of({**GREEDY, "max_tokens": 900})
        stream = engine.openai().asynchronous.chat.completions.stream(request)
        async for _ in stream:
            break
        await stream.aclose()

    run(leave())
    assert idle(engine)
