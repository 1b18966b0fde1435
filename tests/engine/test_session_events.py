"""Sessions under any order of events: nothing leaks, and named samples stay what they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import Engine, EngineError, Sample
from tests.engine.engines import idle, sampler
from tests.engine.sessions import (
    DRAW,
    deterministic,
    run,
)

EVENTS = [
    "sample",
    "advance",
    "branch",
    "drop a task",
    "cancel",
    "deadline",
    "close",
    "new weights",
    "wait",
]
NAMED = DRAW.model_copy(update={"adapter": False, "seed": 1})


@pytest.fixture(scope="module")
def watched(folder: Path) -> tuple[Engine, list[list[int]]]:
    """A small engine that checks its pages after each step, and four named samples as drawn by another."""
    engine = deterministic(folder, kv_tokens=80, max_batch=3, max_waiting=2, parked_share=0.4)
    run_step, sampled = sampler(engine).step, deterministic(folder, stir=False)

    def checked() -> Any:
        ended = run_step()
        sampler(engine).scheduler.check()
        return ended

    sampler(engine).step = checked
    groups = sampled.sample([[7, key, 9] for key in range(4)], NAMED)
    return engine, [group.samples[0].token_ids for group in groups]


@settings(max_examples=25, deadline=None)
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=25))
def test_any_order_of_events_leaks_nothing(
    watched: tuple[Engine, list[list[int]]], events: list[tuple[str, int]]
) -> None:
    engine, expected = watched

    async def play() -> None:
        session, tasks, samples = engine.session(), list[asyncio.Task[Any]](), list[Sample]()

        async def begin(key: int, deadline: float | None = None) -> None:
            sample = await session.sample([7, key, 9], NAMED, key=key, priority=key % 2, deadline=deadline)
            whole = sample.finish_reason == "length"
            assert sample.token_ids == expected[key][: 5 if whole else len(sample.token_ids)]
            samples.append(sample)

        async def grow(sample: Sample, key: int) -> None:
            samples.extend(await session.branch(sample, 0, 2, NAMED, key=50 + key))

        for what, key in events:
            if what in ("sample", "deadline"):
                tasks.append(asyncio.create_task(begin(key, 0.001 if what == "deadline" else None)))
            elif what == "advance" and samples:
                work = session.advance(samples[key % len(samples)], [90] * key, NAMED)
                tasks.append(asyncio.create_task(work))  # type: ignore[arg-type]
            elif what == "branch" and samples:
                tasks.append(asyncio.create_task(grow(samples[key % len(samples)], key)))
            elif what == "drop a task" and tasks:
                tasks[key % len(tasks)].cancel()
            elif what == "cancel":
                session.cancel()
            elif what == "close":
                session.close()
                session = engine.session()
            elif what == "new weights":
                engine.weights_changed()
            await asyncio.sleep(0.002 * key)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        session.close()
        wrong = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, EngineError)]
        assert not wrong, wrong

    run(play())
    assert idle(engine) and engine.counters()["pages_parked"] == 0
