"""Sessions: samples of several turns, drawn, continued and branched while others are served."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import SFT, Engine, Group, Sample, Sampling
from tests.engine.engines import TRAIN, drawn, idle, load, outside, prompts, shake
from tests.engine.sessions import (
    DRAW,
    OBSERVATIONS,
    PATIENCE,
    deterministic,
    one_by_one,
    record,
    run,
    trajectory,
)


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


def test_sessions_from_threads_with_event_loops_of_their_own(
    folder: Path, alone: list[tuple[Any, ...]]
) -> None:
    engine = deterministic(folder, max_batch=3)
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(run, one_by_one(engine, range(key, key + 1))) for key in range(5)]
        assert [record(r.result(PATIENCE)[0]) for r in running] == alone
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


def test_a_seed_is_the_name_of_a_request_without_one(folder: Path) -> None:
    """What `Engine.sample` draws with that seed, whatever was asked before and in whatever session."""
    engine = deterministic(folder)
    seeded = DRAW.model_copy(update={"seed": 7})
    [group] = engine.sample([[1, 2, 3]], seeded.model_copy(update={"n": 2}))
    [other] = engine.sample([[1, 2, 3]], seeded, keys=[5])

    async def draw(iteration: int) -> list[Sample]:
        async with engine.session(iteration) as session:
            ask = [{"index": 0}, {"index": 1}, {"key": 5}]
            found = [await session.sample([1, 2, 3], seeded, **named) for named in ask]
            await session.sample([1, 2, 3], DRAW)
            return [*found, *await session.branch(found[2], 0, 2, seeded)]

    for iteration in (0, 3):
        first, second, named, *branches = run(draw(iteration))
        assert [record(s) for s in (first, second)] == [record(s) for s in group.samples]
        assert [s.token_ids for s in branches] == [s.token_ids for s in group.samples]
        assert record(named) == record(other.samples[0])


def test_a_seeded_sample_goes_on_with_its_seed(folder: Path) -> None:
    engine, seeded = deterministic(folder), DRAW.model_copy(update={"seed": 2**64 + 7})

    async def draw(later: Sampling) -> Sample:
        async with engine.session() as session:
            return await session.advance(await session.sample([1, 2], seeded), [9], later)

    assert record(run(draw(seeded))) == record(run(draw(DRAW)))


def test_a_seed_for_a_sample_that_no_engine_drew(folder: Path) -> None:
    engine = deterministic(folder)

    async def draw(seed: int) -> Sample:
        async with engine.session() as session:
            sample = outside([1, 2], [3], temperature=DRAW.temperature)
            return await session.advance(sample, [9], DRAW.model_copy(update={"seed": seed}))

    first, again, other = (run(draw(seed)) for seed in (7, 7, 8))
    assert first.token_ids == again.token_ids != other.token_ids


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
    assert [v - sample.policy_version for v in sample.token_versions()] == [0] * 6 + [1] * 4
    stats = engine.train([Group(sample.prompt_ids, [sample])], SFT())
    assert stats["ratio_max_error"] < 1e-4, "only tokens of the present weights are compared with them"
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
