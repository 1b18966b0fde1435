"""Sessions: samples of several turns, drawn, continued and branched while others are served."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import Engine, EngineError, Group, Sample, Sampling, Session
from tests.engine.engines import TRAIN, drawn, idle, load, outside, prompts, sampler, shake

T = TypeVar("T")
PATIENCE = 60.0
DRAW = Sampling(max_tokens=5, ignore_eos=True, temperature=1.1)
OBSERVATIONS = [[90, 91, 92], [93, 94], [95], []]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own; nothing may hang."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def record(sample: Sample) -> tuple[Any, ...]:
    """Everything about a sample, to the bit."""
    return *drawn([Group(sample.prompt_ids, [sample])])[0], sample.mask, sample.policy_version, sample.noise


async def trajectory(
    session: Session, key: int, turns: int = 3, rest: Callable[[], Awaitable[None]] | None = None
) -> Sample:
    """A sample of several turns; ``rest`` stands for an environment that thinks."""
    sample = await session.sample(prompts(key + 1, shared=6)[key], DRAW, key=key)
    for turn in range(turns - 1):
        if rest is not None:
            await rest()
        await session.advance(sample, OBSERVATIONS[(key + turn) % 3], DRAW)
    return sample


async def one_by_one(engine: Engine, keys: range = range(5)) -> list[Sample]:
    async with engine.session() as session:
        return [await trajectory(session, key) for key in keys]


def deterministic(folder: Path, **changes: Any) -> Engine:
    return load(folder, deterministic=True, **changes)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[tuple[Any, ...]]:
    """Five trajectories, each in an engine where nothing else runs."""
    return [record(run(one_by_one(deterministic(folder), range(key, key + 1)))[0]) for key in range(5)]


# -- exactness ---


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_batch": 2}, {"kv_tokens": 100}, {"parked_share": 0.0}, {"page_size": 16}, {"max_waiting": 1}],
    ids=str,
)
def test_tokens_depend_on_nothing_but_the_name(
    folder: Path, alone: list[tuple[Any, ...]], changes: dict[str, Any]
) -> None:
    """Arrival order, latency, company, pages that were kept or not: none changes a bit."""
    engine = deterministic(folder, **changes)

    async def all_at_once(seed: int) -> list[Sample]:
        rng = random.Random(seed)

        async def rest() -> None:
            for _ in range(rng.choice([0, 1, 9])):
                await asyncio.sleep(0)

        async with engine.session() as session:
            order = rng.sample(range(5), 5)
            noise = [asyncio.create_task(session.sample([7] * 9, DRAW)) for _ in range(3)]
            found = await asyncio.gather(*(trajectory(session, key, rest=rest) for key in order))
            await asyncio.gather(*noise)
            return [sample for _, sample in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    for seed in range(2):
        assert [record(s) for s in run(all_at_once(seed))] == alone
    assert idle(engine)


def test_a_named_sample_is_that_of_a_group(folder: Path) -> None:
    engine = deterministic(folder)
    [group] = engine.sample(prompts(1), Sampling(n=3, max_tokens=8), keys=[11])

    async def draw() -> list[Sample]:
        async with engine.session(iteration=0) as session:
            named = [session.sample(prompts(1)[0], Sampling(max_tokens=8), key=11, index=i) for i in range(3)]
            return list(await asyncio.gather(*named))

    assert [record(s) for s in run(draw())] == [record(s) for s in group.samples]


def test_a_continued_sample_is_drawn_as_from_scratch(folder: Path) -> None:
    """Whoever holds the sample alone can continue it: the record decides, not the pages."""
    [whole] = run(one_by_one(deterministic(folder), range(1)))
    first, second = deterministic(folder), deterministic(folder)

    async def begin() -> Sample:
        async with first.session() as session:
            return await trajectory(session, 0, turns=2)

    async def end(sample: Sample) -> Sample:
        async with second.session() as session:
            return await session.advance(sample, OBSERVATIONS[1], DRAW)

    assert record(run(end(run(begin())))) == record(whole)


def test_a_sample_that_goes_on_is_the_longer_one(folder: Path) -> None:
    """The noise is that of the position from the root, whatever turns the sample was drawn in."""
    engine = deterministic(folder)

    async def draw(*parts: int) -> Sample:
        async with engine.session() as session:
            limits = [Sampling(max_tokens=n, ignore_eos=True) for n in parts]
            sample = await session.sample(prompts(1)[0], limits[0], key=4)
            for limit in limits[1:]:
                await session.advance(sample, [], limit)
            return sample

    whole = run(draw(12))
    for parts in ((3, 9), (1, 1, 4, 6)):
        sample = run(draw(*parts))
        assert drawn([Group([], [sample])])[0][:3] == drawn([Group([], [whole])])[0][:3]


@pytest.mark.parametrize("exact", [True, False], ids=["deterministic", "fast"])
def test_the_record_is_the_trainers(folder: Path, exact: bool) -> None:
    engine = load(folder, deterministic=exact)
    samples = run(one_by_one(engine))
    for sample in samples:
        assert len(sample.turns()) == 3 and sample.finish_reason == "length"
        sample.advantage = [1.0, -1.0, 0.5]
    stats = engine.train([Group(sample.prompt_ids, [sample]) for sample in samples], TRAIN)
    assert stats["ratio_max_error"] <= (0.0 if exact else 1e-5) and stats["tokens_trained"] == 5 * 15
    assert stats["sampler_trainer_gap"] <= (0.0 if exact else 1e-5)


def test_unnamed_requests_draw_anew(folder: Path) -> None:
    engine = deterministic(folder)

    async def draw() -> list[Sample]:
        async with engine.session() as session:
            return [await session.sample([1, 2, 3], DRAW) for _ in range(4)]

    assert len({tuple(s.token_ids) for s in run(draw())}) == 4


# -- what is computed ---


def test_a_next_turn_computes_the_last_token_and_the_observation(folder: Path) -> None:
    engine = load(folder)

    def rows() -> int:
        return engine.counters()["rows_computed"]

    async def draw() -> None:
        async with engine.session() as session:
            sample = await session.sample(prompts(1)[0], DRAW, key=0)
            for observation in OBSERVATIONS:
                before = rows()
                await session.advance(sample, observation, DRAW)
                assert rows() - before == 1 + len(observation) + 4  # and four drawn tokens are fed back
                computed = len(sample.prompt_ids + sample.token_ids) - 1
                assert engine.counters()["pages_parked"] == -(-computed // 4)
            before = rows()
            branches = await session.branch(sample, 2, 3, DRAW, key=5)
            assert rows() - before == 1 + 3 * 4
            assert len({tuple(b.token_ids) for b in branches}) == 3

    run(draw())
    assert idle(engine)
    counters = engine.counters()
    assert counters["tokens_recomputed"] == counters["pages_parked"] == 0


def crowd(engine: Engine) -> None:
    """Fill the cache with other prompts, twice over."""
    engine.sample([[i % 100] * 40 for i in range(30)], Sampling(max_tokens=2, ignore_eos=True))


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_pages_stay_while_the_environment_thinks(folder: Path, share: float) -> None:
    engine = deterministic(folder, kv_tokens=400, parked_share=share)

    async def draw() -> int:
        async with engine.session() as session:
            sample = await session.sample(prompts(1)[0], DRAW, key=0)
            crowd(engine)
            before = engine.counters()["tokens_recomputed"]
            await session.advance(sample, [90], DRAW)
            return engine.counters()["tokens_recomputed"] - before

    assert run(draw()) == (0 if share else 10 + 4)
    assert idle(engine)


def test_the_cap_holds_and_the_oldest_goes_first(folder: Path) -> None:
    engine = load(folder, kv_tokens=400, parked_share=0.1)  # 10 of 100 pages

    async def draw() -> None:
        async with engine.session() as session:
            samples = [await session.sample([i] * 14, DRAW, key=i) for i in range(4)]  # 5 pages each
            assert engine.counters()["pages_parked"] == 10
            crowd(engine)
            recomputed = []
            for sample in reversed(samples):
                before = engine.counters()["tokens_recomputed"]
                await session.advance(sample, [90], Sampling(max_tokens=1, temperature=1.1))
                recomputed.append(engine.counters()["tokens_recomputed"] - before)
            assert recomputed[:2] == [0, 0] and min(recomputed[2:]) > 0

    run(draw())
    assert idle(engine)


def test_kept_pages_never_stop_a_request(folder: Path) -> None:
    engine = load(folder, kv_tokens=120, parked_share=1.0)

    async def draw() -> None:
        async with engine.session() as session:
            for i in range(6):
                await session.sample([i] * 20, DRAW)
            sample = await session.sample([50] * 100, Sampling(max_tokens=20, ignore_eos=True))
            assert len(sample.token_ids) == 20

    run(draw())
    assert idle(engine)


def test_new_weights_are_used_by_the_next_turn(folder: Path) -> None:
    engine = load(folder)

    async def draw() -> Sample:
        async with engine.session() as session:
            sample = await session.sample(prompts(1)[0], Sampling(max_tokens=4, ignore_eos=True), key=0)
            shake(engine, seed=3)
            assert engine.counters()["pages_parked"] == 0
            return await session.advance(sample, [90, 91], Sampling(max_tokens=4, ignore_eos=True))

    sample = run(draw())
    ids = sample.prompt_ids + sample.token_ids
    scored = engine.logprobs([ids], [(len(sample.prompt_ids), len(ids))])[0]
    gaps = (scored - torch.tensor(sample.policy_logprobs)).abs()
    assert float(gaps[6:].max()) < 1e-4 < float(gaps[:4].max())
    assert sample.policy_version == engine.policy_version - 1, "as old as its first turn"
    assert engine.counters()["tokens_recomputed"] == 10 + 3


# -- branches ---


def test_branches_share_everything_before(folder: Path) -> None:
    engine = deterministic(folder)

    async def draw() -> tuple[Sample, list[list[Sample]]]:
        async with engine.session() as session:
            sample = await trajectory(session, 0)
            kept = record(sample)
            branches = [await session.branch(sample, turn, 2, DRAW, key=70 + turn) for turn in range(3)]
            assert record(sample) == kept
            for branch in branches[1]:
                await session.advance(branch, [99], DRAW)
            return sample, branches

    sample, branches = run(draw())
    for turn, pair in enumerate(branches):
        cut = sample.turns()[turn][0]
        for branch in pair:
            assert branch.prompt_ids == sample.prompt_ids and branch.token_ids[:cut] == sample.token_ids[:cut]
            assert branch.policy_logprobs[:cut] == sample.policy_logprobs[:cut]
            assert len(branch.turns()) == turn + 1 + (turn == 1)
        assert pair[0].token_ids != pair[1].token_ids
    flat = [branch for pair in branches for branch in pair]
    for branch in flat:
        branch.advantage = 1.0
    stats = engine.train([Group(sample.prompt_ids, flat)], TRAIN)
    assert stats["ratio_max_error"] == 0.0


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


class Held:
    """Settings of a long sample that stops in its mask, with ``tokens`` drawn, until it may go on."""

    def __init__(self, tokens: int, **changes: Any) -> None:
        self._loop, self._event, self._go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        self._tokens = tokens
        self.sampling = Sampling(max_tokens=110, ignore_eos=True, logit_mask=self._mask, **changes)

    def _mask(self, ids: list[int], position: int) -> None:
        if position == self._tokens:
            self._loop.call_soon_threadsafe(self._event.set)
            assert self._go.wait(PATIENCE)

    async def reached(self) -> None:
        await self._event.wait()

    def go_on(self) -> None:
        self._go.set()


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


def test_sessions_from_threads_with_event_loops_of_their_own(
    folder: Path, alone: list[tuple[Any, ...]]
) -> None:
    engine = deterministic(folder, max_batch=3)
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(run, one_by_one(engine, range(key, key + 1))) for key in range(5)]
        assert [record(r.result(PATIENCE)[0]) for r in running] == alone
    assert idle(engine)


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
    "id": (lambda s, x: s.advance(x, [101], DRAW), r"ids outside 0 … 100"),
    "temperature": (
        lambda s, x: s.advance(x, [1], Sampling()),
        r"^advance: temperature 1.0, the sample was drawn at 1.1",
    ),
    "turn": (lambda s, x: s.branch(x, 1, 2), r"^branch: turn 1 and n 2 of a sample of 1 turns"),
    "no branch": (lambda s, x: s.branch(x, 0, 0), r"^branch: turn 0 and n 0"),
}


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


# -- any order of events ---


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
