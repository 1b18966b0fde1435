"""Several callers of one engine, in threads and event loops: what each gets, and what an error ends."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from proactor.engine import EngineError, Group, ProactorError, Sampling
from tests.engine.engines import TRAIN, drawn, idle, load, outside, prompts, rollout
from tests.engine.sessions import PATIENCE


def test_callers_in_threads_get_what_they_would_get_alone(folder: Path) -> None:
    engine = load(folder, deterministic=True, kv_tokens=400, max_batch=6)
    ids = prompts(8, shared=5)
    draws = [Sampling(n=2, max_tokens=5 + 2 * i, seed=i, temperature=1.1) for i in range(8)]
    alone = load(folder, deterministic=True)
    expected = [drawn(alone.sample([p], d, keys=[3])) for p, d in zip(ids, draws, strict=True)]
    for order in (range(8), reversed(range(8))):
        with ThreadPoolExecutor(8) as pool:
            running = {i: pool.submit(engine.sample, [ids[i]], draws[i], [3]) for i in order}
            for i, future in running.items():
                assert drawn(future.result(PATIENCE)) == expected[i]
    assert idle(engine)


def test_two_event_loops_read_streams_at_once(folder: Path) -> None:
    engine, ids = load(folder), prompts(4)

    async def read() -> list[int]:
        return [group.index async for group in engine.stream(ids, Sampling(n=2, max_tokens=9))]

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(asyncio.run, read()) for _ in range(2)]
        assert [sorted(r.result(PATIENCE)) for r in results] == [[0, 1, 2, 3]] * 2
    assert idle(engine)


def test_a_stream_that_is_not_read_stops_nobody(folder: Path) -> None:
    engine, ids = load(folder, kv_tokens=200), prompts(4)

    async def run() -> None:
        stream = engine.stream(ids, Sampling(n=4, max_tokens=20, ignore_eos=True))
        async for _ in stream:
            break
        for _ in range(3):
            engine.sample(ids, Sampling(n=2, max_tokens=5))
        left = [group async for group in stream]
        assert len(left) == 3 and {len(s.token_ids) for g in left for s in g.samples} == {20}

    asyncio.run(run())


def test_training_and_scoring_wait_for_a_step_not_for_the_caller(folder: Path) -> None:
    """Scoring goes between two steps; training after what was in flight, and before what comes behind it."""
    engine = load(folder)
    groups, version = rollout(engine), engine.policy_version
    started = threading.Event()

    def mask(ids: list[int], position: int) -> None:
        started.set()

    long = Sampling(max_tokens=100, ignore_eos=True, logit_mask=mask)
    with ThreadPoolExecutor(3) as pool:
        early = pool.submit(engine.sample, prompts(1), long)
        assert started.wait(PATIENCE)
        scored = engine.logprobs([[1, 2, 3]])
        trained = pool.submit(engine.train, groups, TRAIN)
        while not engine._owner.call(lambda: len(engine._loop._line)) and not trained.done():
            time.sleep(0.001)
        late = pool.submit(engine.sample, prompts(1), Sampling(max_tokens=3))
        assert early.result(PATIENCE)[0].samples[0].policy_version == version
        assert trained.result(PATIENCE)["policy_version"] == version + 1
        assert late.result(PATIENCE)[0].samples[0].policy_version == version + 1
    assert len(scored[0]) == 2


def test_a_mask_that_raises_ends_its_own_request(folder: Path) -> None:
    engine = load(folder, deterministic=True)
    expected = drawn(load(folder, deterministic=True).sample(prompts(3), Sampling(max_tokens=9, seed=1)))

    def broken(ids: list[int], position: int) -> torch.Tensor | None:
        if position == 4:
            raise ZeroDivisionError("hook")
        return None

    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(
            engine.sample, prompts(2), Sampling(n=2, max_tokens=9, ignore_eos=True, logit_mask=broken)
        )
        good = pool.submit(engine.sample, prompts(3), Sampling(max_tokens=9, seed=1))
        with pytest.raises(ZeroDivisionError, match="hook"):
            bad.result(PATIENCE)
        assert drawn(good.result(PATIENCE)) == expected
    assert idle(engine)


def test_a_step_that_fails_ends_what_is_in_flight_and_the_loop_goes_on(folder: Path) -> None:
    engine = load(folder)
    head = engine.decoder.head.clone()
    engine.decoder.head[3] = float("nan")
    for _ in range(2):
        with pytest.raises(ProactorError, match="NaN"):
            engine.sample(prompts(2), Sampling(max_tokens=4))
    engine.decoder.head.copy_(head)
    assert len(engine.sample(prompts(2), Sampling(max_tokens=4))) == 2 and idle(engine)


@pytest.mark.parametrize("inner", ["sample", "release"])
def test_what_would_wait_for_itself_is_refused(folder: Path, inner: str) -> None:
    engine = load(folder)

    def mask(ids: list[int], position: int) -> None:
        if inner == "sample":
            engine.sample(prompts(1), Sampling(max_tokens=1))
        else:
            engine.release()

    with pytest.raises(EngineError, match=rf"^{inner}: called from inside the engine"):
        engine.sample(prompts(1), Sampling(logit_mask=mask))
    assert idle(engine)


def test_a_loss_may_ask_the_model(folder: Path) -> None:
    engine = load(folder)
    data = [Group([1, 2], [outside([1, 2], [5 + i, 6], advantage=1.0) for i in range(2)])]
    seen = []

    def loss(logprobs: torch.Tensor, batch: object) -> torch.Tensor:
        seen.extend(engine.logprobs([[1, 2, 5]]))
        return -logprobs.sum()

    engine.forward_backward(data, loss)
    engine.zero_grad()
    assert len(seen) == 1


def test_release_ends_what_is_in_flight(folder: Path) -> None:
    engine, started = load(folder), threading.Event()

    def mask(ids: list[int], position: int) -> None:
        started.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            engine.sample, prompts(1), Sampling(max_tokens=100, ignore_eos=True, logit_mask=mask)
        )
        assert started.wait(PATIENCE)
        engine.release()
        with pytest.raises(EngineError, match="released"):
            running.result(PATIENCE)
    engine.release()


def test_more_than_may_wait_is_served_too(folder: Path) -> None:
    engine, most = load(folder, max_waiting=2, max_batch=2), 0

    def mask(ids: list[int], position: int) -> None:
        nonlocal most
        most = max(most, engine.counters()["waiting"])

    draw = Sampling(max_tokens=4, ignore_eos=True, logit_mask=mask)
    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(engine.sample, prompts(1), draw) for _ in range(12)]
        assert all(len(r.result(PATIENCE)[0].samples[0].token_ids) == 4 for r in running)
    assert most <= 2 and idle(engine)
