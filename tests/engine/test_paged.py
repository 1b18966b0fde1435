"""Pages: their place does not matter, free ones are never read, and shared ones are never written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, Sampling
from tests.engine.engines import drawn, load, prompts, sampler, shake

TRUNK = prompts(1, length=40, seed=2)[0]
TURNS = [TRUNK[:cut] + tail for cut, tail in zip((7, 18, 30, 40), prompts(4, length=3, seed=3), strict=True)]
OTHERS = prompts(3, length=9, seed=5)


def poison(engine: Engine) -> None:
    """NaN in every page that is free, before the first step and before each later one, and in the unwritten
    rest of pages that are not.
    """
    run = sampler(engine)
    pool, cache, size = run.scheduler.pool, run.cache, run.cache.page_size
    step = run._step

    def spoil() -> None:
        slots = torch.tensor([p * size + i for p in pool._free for i in range(size)], dtype=torch.int64)
        for tensor in (*cache.k, *cache.v):
            tensor[:, slots] = float("nan")

    def poisoned(planned: Any) -> Any:
        spoil()
        tokens = step(planned)
        pool.check()
        return tokens

    run._step = poisoned
    for tensor in (*cache.k, *cache.v):
        tensor.fill_(float("nan"))  # pages that the first plan hands out are full of it


def shuffle(engine: Engine, seed: int) -> None:
    """Free pages in random order, so that no two neighbours in a sequence are neighbours in memory."""
    random.Random(seed).shuffle(sampler(engine).scheduler.pool._free)


def work(engine: Engine) -> list[tuple[Any, ...]]:
    """Shared prefixes, forks inside a page, a hot cache, a change of weights, adapter on and off."""
    samples = []
    for seed in (1, 2):
        draws = [
            Sampling(n=1 + i, max_tokens=3 + 2 * i, seed=seed, ignore_eos=True)
            for i in range(len(TURNS + OTHERS))
        ]
        samples += drawn(engine.sample(TURNS + OTHERS, draws))
        samples += drawn(engine.sample(TURNS, Sampling(n=2, max_tokens=5, seed=seed, adapter=False)))
        shake(engine, seed)
    return samples


@pytest.mark.parametrize("deterministic", [False, True])
def test_shuffled_and_poisoned_pages_change_nothing(folder: Path, deterministic: bool) -> None:
    # fixed: adaptive batches follow the clock, and other batches round otherwise
    settings: dict[str, Any] = {"deterministic": deterministic, "kv_tokens": 512, "batching": "fixed"}
    expected = work(load(folder, **settings))
    for seed in range(2):
        engine = load(folder, **settings)
        shuffle(engine, seed)
        poison(engine)
        assert work(engine) == expected
        tables = engine.counters()
        assert (
            tables["copies"] > 0 and tables["tokens_avoided_prefix"] > 0 and tables["tokens_avoided_fork"] > 0
        )


def test_a_tight_pool_evicts_and_changes_nothing(folder: Path) -> None:
    expected = work(load(folder, deterministic=True, kv_tokens=2048))
    engine = load(folder, deterministic=True, kv_tokens=64 + 16)
    shuffle(engine, 3)
    poison(engine)
    assert work(engine) == expected
    assert engine.counters()["evictions"] > 0


def test_the_pages_decide(folder: Path) -> None:
    """The cache is what attention reads: zeroing the pages of a cached prompt changes what follows it."""
    engine = load(folder)
    draw = Sampling(n=1, max_tokens=4, seed=3)
    first = drawn(engine.sample([TRUNK], draw))
    assert drawn(engine.sample([TRUNK], draw))[0][0] == first[0][0]
    for tensor in (*sampler(engine).cache.k, *sampler(engine).cache.v):
        tensor.zero_()
    [group] = engine.sample([TRUNK], draw)
    assert group.samples[0].logprobs != pytest.approx(first[0][1], abs=1e-3)


def snapshots(engine: Engine) -> Callable[[], list[torch.Tensor]]:
    cache = sampler(engine).cache
    return lambda: [t.clone() for t in (*cache.k, *cache.v)]


def test_copy_on_write_leaves_the_source_alone(folder: Path) -> None:
    """A prompt that departs from another inside a page copies it; all cached pages keep their bytes."""
    engine = load(folder, page_size=8)
    take = snapshots(engine)
    draw = Sampling(n=3, max_tokens=7, seed=1, ignore_eos=True)
    first = drawn(engine.sample([TRUNK], draw, keys=[1]))
    pool = sampler(engine).scheduler.pool
    cached = [p for p in range(pool.num_pages) if p not in set(pool._free)]
    before, copies = take(), engine.counters()["copies"]
    branch = [*TRUNK[:29], 1, 2, 3, 4, 5, 6]
    other = drawn(engine.sample([branch], draw, keys=[2]))
    assert engine.counters()["copies"] >= copies + 3  # out of the trunk's page, and for two forks
    slots = torch.tensor([p * 8 + i for p in cached for i in range(8)])
    for old, new in zip(before, take(), strict=True):
        written = torch.tensor([p * 8 + i for p in cached for i in range(8) if old[:, p * 8 + i].any()])
        assert torch.equal(old[:, written], new[:, written]) and len(written) > len(slots) // 2
    for again, once in zip(drawn(engine.sample([TRUNK], draw, keys=[1])), first, strict=True):
        assert again[0] == once[0] and again[1] == pytest.approx(once[1], abs=1e-5)
    alone = load(folder, page_size=8)
    assert [o[0] for o in drawn(alone.sample([branch], draw, keys=[2]))] == [o[0] for o in other]


def test_siblings_do_not_see_one_another(folder: Path) -> None:
    """Six samples behind a prompt that ends inside a page are what six separate engines draw one by one."""
    prompt = TRUNK[:21]
    engine = load(folder, deterministic=True, page_size=8)
    [group] = engine.sample([prompt], Sampling(n=6, max_tokens=11, seed=8, ignore_eos=True))
    ids = [s.prompt_ids + s.token_ids for s in group.samples]
    again = engine.logprobs(ids, [(21, len(i)) for i in ids])
    assert len({tuple(s.token_ids) for s in group.samples}) == 6
    for sample, expected in zip(group.samples, again, strict=True):
        assert sample.policy_logprobs == expected.tolist()


def test_a_prompt_is_computed_once(folder: Path) -> None:
    """Rows through the model: each turn's own tail, the trunk once, and one a token that is fed back."""
    engine = load(folder)
    before = engine.counters()["rows_computed"]
    engine.sample(TURNS, Sampling(n=4, max_tokens=1, ignore_eos=True))
    tails = sum(len(t) - cut for t, cut in zip(TURNS, (7, 18, 30, 40), strict=True))
    rows = engine.counters()["rows_computed"] - before
    assert rows == 40 + tails
    engine.sample(TURNS, Sampling(n=4, max_tokens=5, ignore_eos=True))
    decoded, last = (
        4 * 4 * len(TURNS),
        len(TURNS),
    )  # a hot prompt still computes its last token, for the logits
    assert engine.counters()["rows_computed"] - before - rows == decoded + last


def test_new_weights_do_not_read_old_pages_and_the_bare_model_keeps_its_own(folder: Path) -> None:
    engine, fresh = load(folder, deterministic=True), load(folder, deterministic=True)
    draw, bare = Sampling(max_tokens=4, seed=1), Sampling(max_tokens=4, seed=1, adapter=False)
    engine.sample([TRUNK], draw)
    first = drawn(engine.sample([TRUNK], bare))
    state = engine.state_dict()
    for e in (engine, fresh):
        shake(e, 5)
    assert drawn(engine.sample([TRUNK], draw)) == drawn(fresh.sample([TRUNK], draw))
    hits = engine.counters()["tokens_avoided_prefix"]
    assert drawn(engine.sample([TRUNK], bare)) == first
    assert engine.counters()["tokens_avoided_prefix"] == hits + len(TRUNK) - 1, (
        "the bare model's pages outlive the step"
    )
    engine.load_state_dict(state)
    hits = engine.counters()["tokens_avoided_prefix"]
    engine.sample([TRUNK], draw)
    assert engine.counters()["tokens_avoided_prefix"] == hits, (
        "loading old state must not bring back an old epoch"
    )
