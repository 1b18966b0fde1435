"""OpenAI's client without a socket, called from anywhere: it never waits for itself."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import Engine, EngineError, RequestTimeout, Sampling, ToolChat
from tests.engine.engines import idle, load
from tests.engine.openai_calls import ASK, create, said
from tests.engine.sessions import PATIENCE, Held, run


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Engine:
    return load(chat_folder, kv_tokens=4096)


def test_a_judge_runs_in_a_worker_while_the_loop_decodes(chat_folder: Path) -> None:
    """A batch of one: the judge's row waits for the policy's, and the policy's next turn for the judge."""
    engine = load(chat_folder, max_batch=1, kv_tokens=512)
    client, chat = engine.openai(), ToolChat(engine.chat)  # type: ignore[arg-type]

    def judge(text: str) -> str:
        content = [{"type": "text", "text": f"Grade: {text[:20]}"}]
        return str(create(client, messages=[{"role": "user", "content": content}]).choices[0].message.content)

    async def episode(session: Any, key: int) -> int:
        sampling = Sampling(max_tokens=5, ignore_eos=True)
        sample = await session.sample(chat.opening(ASK), sampling, key=key)
        for _ in range(2):
            graded = await asyncio.to_thread(judge, sample.text)
            ids = chat.observation(sample.token_ids, [{"role": "user", "content": graded or "?"}])
            await session.advance(sample, ids, sampling)
        return len(sample.turns())

    async def main() -> list[int]:
        async with engine.session() as session:
            return await asyncio.gather(*(episode(session, key) for key in range(4)))

    assert run(main()) == [3] * 4
    assert client.counters["replies"] == 8 and idle(engine)


def test_from_several_event_loops_and_threads_at_once(engine: Engine) -> None:
    client, alone = engine.openai(), said(create(engine.openai()))

    def threads(i: int) -> list[list[int]]:
        if i % 3 == 0:
            return said(create(client))

        async def three() -> list[Any]:
            return await asyncio.gather(*(create(client.asynchronous) for _ in range(3)))

        if i % 3 == 1:
            return said(run(three())[2])

        async def inside() -> list[list[int]]:
            return said(create(client))  # blocks this loop, and no other

        return run(inside())

    with ThreadPoolExecutor(6) as pool:
        results = [task.result(PATIENCE) for task in [pool.submit(threads, i) for i in range(12)]]
    assert results == [alone] * 12


def test_giving_up_ends_the_sampling(engine: Engine) -> None:
    async def main() -> None:
        held = Held(2)
        async with engine.session() as session:
            blocking = asyncio.ensure_future(session.sample([1, 2, 3], held.sampling))
            await held.reached()
            waiting = asyncio.ensure_future(create(engine.openai().asynchronous))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            held.go_on()
            await blocking

    run(main())
    assert idle(engine)


def test_time_outs(engine: Engine) -> None:
    client = engine.openai()
    with pytest.raises(RequestTimeout, match="no answer in time"):
        create(client.with_options(timeout=0))
    with pytest.raises(TimeoutError):
        create(client, timeout=0)
    assert client.counters["timeouts"] == 2
    assert create(client, timeout=PATIENCE).choices
    assert idle(engine)


def test_from_inside_a_step_it_is_refused(engine: Engine) -> None:
    client, seen = engine.openai(), []

    def mask(ids: list[int], position: int) -> None:
        seen.append(threading.current_thread())
        create(client)

    with pytest.raises(EngineError, match="would wait for itself"):
        engine.sample([[1, 2]], Sampling(max_tokens=2, logit_mask=mask))
    assert seen and idle(engine)
