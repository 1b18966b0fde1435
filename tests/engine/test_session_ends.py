"""Sessions: deadlines, cancelling, priority; callers in several threads; what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import EngineError, Sample, Sampling, Session
from tests.engine.engines import idle, load, outside
from tests.engine.sessions import (
    DRAW,
    PATIENCE,
    Held,
    record,
    run,
)

# -- ends ---


def test_a_deadline_returns_what_was_drawn(folder: Path) -> None:
    engine = load(folder)
    long = Sampling(max_tokens=100, ignore_eos=True)

    async def draw() -> None:
        async with engine.session() as session:
            late = await session.sample([1, 2], long, deadline=0)
            assert (late.token_ids, late.finish_reason) == ([], "deadline")
            await session.advance(late, [3], Sampling(max_tokens=2, ignore_eos=True), deadline=PATIENCE)
            assert len(late.token_ids) == 3 and late.finish_reason == "length"
            slow = long.model_copy(
                update={"logit_mask": lambda ids, at: time.sleep(0.2) if at == 2 else None}
            )
            await session.advance(late, [4], slow, deadline=0.1)
            assert late.finish_reason == "deadline" and len(late.token_ids) <= 3 + 1 + 3
            assert late.mask is not None and late.mask[:4] == [False, True, True, False]

    run(draw())
    assert idle(engine)


def test_cancelling_a_session_returns_what_was_drawn(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> None:
        async with engine.session() as session, engine.session() as other:
            held = Held(3)
            mine = asyncio.create_task(session.sample([1, 2], held.sampling, key=1))
            theirs = asyncio.create_task(other.sample([1, 2], Sampling(max_tokens=100, ignore_eos=True)))
            await held.reached()
            session.cancel()
            held.go_on()
            sample = await mine
            assert sample.finish_reason == "cancelled" and len(sample.token_ids) == len(sample.logprobs) == 4
            await session.advance(sample, [5], Sampling(max_tokens=2, ignore_eos=True))
            assert sample.finish_reason == "length" and len((await theirs).token_ids) == 100

    run(draw())
    assert idle(engine)


def test_a_cancelled_task_leaves_the_sample_as_it_was(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> None:
        async with engine.session() as session:
            sample = await session.sample([1, 2], DRAW, key=1)
            before, held = record(sample), Held(2, temperature=DRAW.temperature)
            task = asyncio.create_task(session.advance(sample, [9], held.sampling))
            await held.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.go_on()
            assert record(sample) == before
            await session.advance(sample, [9], DRAW)

    run(draw())
    assert idle(engine)


def test_leaving_the_block_ends_what_runs(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> Sample:
        async with engine.session() as session:
            held = Held(1)
            task = asyncio.create_task(session.sample([1, 2], held.sampling))
            await held.reached()
        held.go_on()
        return await task

    assert run(draw()).finish_reason == "cancelled" and idle(engine)


@pytest.mark.parametrize("max_waiting", [1, 100])
def test_higher_priority_begins_first(folder: Path, max_waiting: int) -> None:
    engine, order = load(folder, max_batch=1, max_waiting=max_waiting), list[int]()

    async def draw() -> None:
        async with engine.session() as session:

            async def wait(priority: int) -> None:
                await session.sample([priority + 1], Sampling(max_tokens=1), priority=priority)
                order.append(priority)

            held = Held(1)
            first = asyncio.create_task(session.sample([1, 2], held.sampling))
            await held.reached()
            others = [asyncio.create_task(wait(p)) for p in (0, 2, 1, 3)]
            await asyncio.sleep(0)  # all have asked
            held.go_on()
            await asyncio.gather(first, *others)

    run(draw())
    assert order == [3, 2, 1, 0]


# -- callers ---


def test_one_session_in_two_event_loops(folder: Path) -> None:
    engine = load(folder)
    session = engine.session()

    async def turn(sample: Sample | None) -> Sample:
        return await (session.sample([1, 2], DRAW) if sample is None else session.advance(sample, [3], DRAW))

    sample = run(turn(None))
    assert run(turn(sample)) is sample and len(sample.turns()) == 2
    session.close()
    assert idle(engine)


BAD: dict[str, tuple[Callable[[Session, Sample], Awaitable[Any]], str]] = {
    "long prompt": (lambda s, x: s.sample([1] * 128), r"leave no room in a context of 128"),
    "n": (lambda s, x: s.sample([1], Sampling(n=2)), r"^session: n=2: a call draws one sample"),
    "key": (lambda s, x: s.sample([1], key=-1), r"key -1 is not an integer"),
    "index": (lambda s, x: s.sample([1], key=1, index=1 << 32), r"is not an integer of 0"),
    "deadline": (
        lambda s, x: s.sample([1], deadline=-1),
        r"^session: deadline -1 is not a number",
    ),
    "pages": (lambda s, x: s.sample([1] * 100, Sampling(max_tokens=20)), r"the pool has 25; give"),
    "observation": (lambda s, x: s.advance(x, "text", DRAW), r"^advance: an observation is a list of token"),
    "long observation": (
        lambda s, x: s.advance(x, [1] * 200, DRAW),
        r"^session: 7 tokens and an observation of 200 leave no room in a context of 128",
    ),
    "id": (lambda s, x: s.advance(x, [101], DRAW), r"id 101 at position 7 is outside 0 … 100"),
    "one message": (lambda s, x: s.sample({"role": "user"}), r"^a prompt is text, .* not a dict$"),
    "one id": (lambda s, x: s.sample(5), r"^a prompt is text, .* not a int$"),
    "no sample": (lambda s, x: s.advance("x", [1], DRAW), r"^advance: sample should be a Sample, not 'x'$"),
    "no sampling": (
        lambda s, x: s.advance(x, [1], {"n": 1}),
        r"^session: sampling should be a Sampling, not {'n': 1}$",
    ),
    "branch of none": (lambda s, x: s.branch(None, 0, 1), r"^branch: sample should be a Sample, not None$"),
    "text turn": (lambda s, x: s.branch(x, "0", 2), r"^branch: at_turn should be an integer, not '0'$"),
    "text n": (lambda s, x: s.branch(x, 0, "2"), r"^branch: n should be an integer, not '2'$"),
    "branch sampling": (lambda s, x: s.branch(x, 0, 2, {"n": 1}), r"^branch: sampling should be a Sampling"),
    "priority": (lambda s, x: s.sample([1], priority="high"), r"^session: priority should be an integer"),
    "text deadline": (lambda s, x: s.sample([1], deadline="1"), r"^session: deadline '1' is not a number"),
    "temperature": (
        lambda s, x: s.advance(x, [1], Sampling()),
        r"^advance: temperature 1.0, the sample was drawn at 1.1",
    ),
    "another seed": (
        lambda s, x: s.advance(x, [1], DRAW.model_copy(update={"seed": 7})),
        r"^advance: seed 7: a sample goes on with its own noise; leave it out$",
    ),
    "turn": (lambda s, x: s.branch(x, 1, 2), r"^branch: turn 1 and n 2 of a sample of 1 turns"),
    "no branch": (lambda s, x: s.branch(x, 0, 0), r"^branch: turn 0 and n 0"),
}


@pytest.mark.parametrize("iteration", ["a", 1.5, None, True])
def test_an_iteration_is_an_integer(folder: Path, iteration: Any) -> None:
    with pytest.raises(EngineError, match=f"^session: iteration should be an integer, not {iteration!r}$"):
        load(folder).session(iteration)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_the_session_goes_on(folder: Path, case: str) -> None:
    engine, (ask, words) = load(folder, kv_tokens=100), BAD[case]

    async def draw() -> None:
        async with engine.session() as session:
            sample = await session.sample([1, 2], DRAW, key=1)
            before = record(sample)
            with pytest.raises(EngineError, match=words):
                await ask(session, sample)
            assert record(sample) == before
            await session.advance(sample, [3], DRAW)

    run(draw())
    assert idle(engine)


def test_a_closed_session_and_a_bad_iteration_are_refused(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> None:
        async with engine.session() as session:
            sample = await session.sample([1], DRAW)
        session.close()
        for work in (session.sample([1]), session.advance(sample, [1], DRAW), session.branch(sample, 0, 1)):
            with pytest.raises(EngineError, match=r"^session: it was closed"):
                await work

    run(draw())
    for iteration in (-1, 1 << 32):
        with pytest.raises(EngineError, match="iteration"):
            engine.session(iteration)


def test_a_sample_that_changed_meanwhile_is_not_continued(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> None:
        async with engine.session() as session:
            sample = await session.sample([1], DRAW)
            twice = await asyncio.gather(
                *(session.advance(sample, [2], DRAW) for _ in range(2)), return_exceptions=True
            )
            errors = [str(e) for e in twice if isinstance(e, EngineError)]
            assert errors == ["advance: the sample was changed while its next turn was drawn"]
            assert len(sample.token_ids) == 11

    run(draw())


def test_a_sample_from_outside_is_continued(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> Sample:
        async with engine.session() as session:
            sample = outside([1, 2], [3, 4])
            await session.advance(sample, [5], Sampling(max_tokens=3, ignore_eos=True))
            return await session.advance(sample, [6], Sampling(max_tokens=3, ignore_eos=True))

    sample = run(draw())
    assert len(sample.token_ids) == 10 and sample.noise is not None
