"""The scheduler, driven by a machine that stands in for the model."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine.kv import PagePool
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Request, RequestTooLarge, Step
from proactor.engine.types import EngineError
from tests.engine.machine import Machine, machine


def nested(turns: int, per_turn: int, tail: int = 3) -> list[list[int]]:
    """The prompts of one dialogue: a longer and longer piece of the trunk, each with a tail of its own."""
    trunk = [100 + i for i in range(turns * per_turn)]
    return [trunk[: k * per_turn] + [10 * k + i for i in range(1, tail + 1)] for k in range(1, turns + 1)]


# -- sharing ---


@pytest.mark.parametrize("per_turn", [5, 8, 11])
@pytest.mark.parametrize("order", ["as said", "reversed", "shuffled"])
def test_nested_prompts_that_arrive_together_compute_the_trunk_once(per_turn: int, order: str) -> None:
    prompts = nested(8, per_turn)
    if order != "as said":
        prompts.reverse() if order == "reversed" else random.Random(1).shuffle(prompts)
    m = machine(rows=512, seqs=64, chunk=512)
    requests = [Request(i, "base", prompt, 4, 6) for i, prompt in enumerate(prompts)]
    for request in requests:
        m.scheduler.add(request)
    stranger = Request(8, "base", [7] * 9, 4, 6)
    m.scheduler.add(stranger)
    m.step()
    assert m.scheduler.counters()["admitted"] == 2  # who shares nothing does not wait
    m.step()
    m.prefill_rows -= 9
    assert m.prefill_rows == 8 * per_turn + 8 * 3  # the trunk and the tails, two steps after arrival
    counters = m.scheduler.counters()
    assert counters["admitted"] == 9 and counters["waiting"] == 0
    assert counters["tokens_avoided_prefix"] == sum(map(len, prompts)) - m.prefill_rows
    m.drain()
    assert m.scheduler.counters()["tokens_avoided_fork"] == 3 * sum(map(len, [*prompts, stranger.prompt_ids]))
    m.verify([*requests, stranger])


def test_waiting_requests_follow_a_long_prompt_chunk_by_chunk() -> None:
    m = machine(rows=40, seqs=16, chunk=16)
    requests = [Request(i, "base", prompt, 1, 3) for i, prompt in enumerate(nested(6, 10))]
    for request in requests:
        m.scheduler.add(request)
    m.step()
    assert m.scheduler.counters()["admitted"] == 1
    requests.append(Request(6, "base", [7] * 5, 1, 3))
    m.scheduler.add(requests[6])
    m.step()
    assert sorted(request.id for request in m.scheduler._running.requests) == [
        0,
        4,
        6,
    ]  # turn 1 begins while the trunk is being computed; a stranger as well
    m.drain()
    assert m.prefill_rows == 6 * 10 + 6 * 3 + 5
    m.verify(requests)


def test_who_waits_does_not_hold_up_the_rest() -> None:
    m = machine(size=8, chunk=3)
    requests = [
        Request(0, "base", [1] * 12, 1, 3),
        Request(1, "base", [1] * 9 + [2], 1, 3),
        Request(2, "base", [3] * 4),
    ]
    for request in requests[:2]:
        m.scheduler.add(request)
    m.step()
    m.scheduler.add(requests[2])
    m.step()
    assert sorted(request.id for request in m.scheduler._running.requests) == [
        0,
        2,
    ]  # 1 waits for pages that take 0 several steps
    m.drain()
    assert m.prefill_rows == 12 + 1 + 4
    m.verify(requests)


def test_the_next_turn_computes_only_what_is_new() -> None:
    m = machine()
    first = Request(0, "base", list(range(50, 70)), 1, 9)
    m.scheduler.add(first)
    m.drain()
    reply = m.ended[0][0].token_ids
    rows = m.prefill_rows
    second = Request(1, "base", first.prompt_ids + reply + [90, 91, 92], 2, 5)
    m.scheduler.add(second)
    m.drain()
    assert m.prefill_rows - rows == 1 + 3  # the last token of the reply was drawn, never fed back
    m.verify([first, second])


prompt_families = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=20), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(prompts=prompt_families, size=st.integers(1, 5), chunk=st.integers(1, 30), n=st.integers(1, 3))
def test_shared_tokens_are_computed_once(prompts: list[list[int]], size: int, chunk: int, n: int) -> None:
    m = machine(pages=600, size=size, rows=60, seqs=30, chunk=chunk)
    requests = [Request(i, "base", prompt, n, 4) for i, prompt in enumerate(prompts)]
    for request in requests:
        m.scheduler.add(request)
    m.drain()
    trie = {tuple(prompt[:k]) for prompt in prompts for k in range(1, len(prompt) + 1)}
    leaves = [
        p for p in {tuple(p) for p in prompts} if not any(q[: len(p)] == p and len(q) > len(p) for q in trie)
    ]
    # a prompt that is the beginning of another, or equal to it, computes its last token for the logits
    assert len(trie) <= m.prefill_rows <= len(trie) + len(prompts) - len(leaves)
    assert m.scheduler.pool.evictions == 0
    assert m.scheduler.pool.hits == sum(map(len, prompts)) - m.prefill_rows
    m.verify(requests)


# -- admission ---


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = Scheduler(PagePool(10, 4), 64, 8)
    with pytest.raises(
        RequestTooLarge, match="request 3: 30 prompt tokens and 12 new ones need 11 pages of 4 tokens, "
    ):
        scheduler.add(Request(3, "base", list(range(30)), 1, 12))
    scheduler.add(Request(3, "base", list(range(30)), 1, 11))
    with pytest.raises(EngineError, match="in use"):
        scheduler.add(Request(3, "base", [1], 1, 1))
    for bad in (Request(4, "b", []), Request(4, "b", [1], n=0), Request(4, "b", [1], max_tokens=0)):
        with pytest.raises(EngineError, match="needs a prompt"):
            scheduler.add(bad)
    with pytest.raises(EngineError, match="max_seqs"):
        Scheduler(PagePool(10), max_rows=4, max_seqs=5)


def test_higher_priority_is_admitted_before_those_who_wait_longer() -> None:
    m = machine(rows=8, seqs=1)
    for i, priority in enumerate((0, 0, 2, 1)):
        m.scheduler.add(Request(i, "base", [i + 1] * 5, 1, 3, priority))
        m.step()
    m.drain()
    assert list(m.ended) == [0, 2, 3, 1]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 20),
    n=st.integers(1, 6),
    new=st.integers(1, 12),
    size=st.integers(1, 5),
    seqs=st.integers(1, 6),
)
def test_the_smallest_pool_that_accepts_a_request_completes_it(
    length: int, n: int, new: int, size: int, seqs: int
) -> None:
    request = Request(0, "base", list(range(1, length + 1)), n, new)
    for pages in range(1, 60):
        m = machine(pages, size, rows=seqs, seqs=seqs, chunk=7)
        try:
            m.scheduler.add(request)
        except RequestTooLarge:
            continue
        m.drain()
        m.verify([request])
        assert pages <= -(-(length + new - 1) // size) + 1
        # and again on the pages that are now full of cached content
        m.scheduler.add(request)
        m.drain()
        m.verify([request])
        return
    raise AssertionError("no pool was large enough")


def test_samples_are_split_when_not_all_fit() -> None:
    m = machine(pages=14, size=4, rows=32, seqs=16)
    requests = [Request(i, "base", [50 + i] * 9, 8, 8) for i in range(3)]
    for request in requests:
        m.scheduler.add(request)
    decoding, split = [], []
    while m.step():
        decoding.append(m.scheduler.counters()["decoding"])
        split.append(len(m.scheduler._running.forking))
    assert 2 <= max(decoding) < 8
    assert max(split) == 1  # no second prompt is held while samples of the first have not begun
    m.verify(requests)


def test_a_request_joins_while_others_decode() -> None:
    m = machine()
    requests = [Request(i, "base", [i + 1] * 6, 2, 12) for i in range(4)]
    for request in requests:
        m.scheduler.add(request)
        m.step()
    m.drain()
    m.verify(requests)


# -- steps ---


def test_what_does_not_change_is_not_rebuilt() -> None:
    m = machine(size=8, seqs=16)
    m.scheduler.add(Request(0, "base", [1] * 7, 2, 40))
    m.step()
    seen: list[Step] = []
    for _ in range(19):
        step = m.scheduler.plan()
        assert step is not None
        seen.append(step)
        m.scheduler.commit(step, dict.fromkeys(m.sample(step), 3))
    assert all(step.decodes is seen[0].decodes and step.roster == seen[0].roster for step in seen)
    for before, after in pairwise(seen):
        assert (after.membership != before.membership) == bool(after.grown)
    assert [i for i, step in enumerate(seen) if step.grown == [0, 1]] == [
        1,
        9,
        17,
    ]  # once a page, both samples together


def test_commit_refuses_what_it_was_not_asked() -> None:
    m = machine()
    scheduler = m.scheduler
    assert scheduler.plan() is None
    scheduler.add(Request(0, "base", [1, 2, 3], 2, 8))
    step = scheduler.plan()
    assert step is not None
    with pytest.raises(AssertionError, match="before the last step"):
        scheduler.plan()
    with pytest.raises(EngineError, match=r"no token for \(request, sample\) \[\(0, 1\)\]"):
        scheduler.commit(step, {(0, 0): 1})
    scheduler.commit(step, {(0, 0): 1, (0, 1): 1})
    with pytest.raises(AssertionError, match="not the one planned last"):
        scheduler.commit(step, {(0, 0): 1, (0, 1): 1})
    step = scheduler.plan()
    assert step is not None
    with pytest.raises(EngineError, match="no token"):
        scheduler.commit(step, {(0, 0): 1})
    scheduler.check()


def test_abort_frees_everything_wherever_the_request_is() -> None:
    for steps in range(8):
        for in_flight in (False, True):
            m = machine(rows=8, seqs=4, chunk=6)
            requests = [Request(i, "base", [7] * 9 + [i + 1], 3, 6) for i in range(3)]
            for request in requests:
                m.scheduler.add(request)
            for _ in range(steps):
                m.step()
            step = m.scheduler.plan() if in_flight else None
            known = 1 in m.scheduler._unended
            assert m.scheduler.abort(1) == known
            if step is not None:
                m.commit(step, m.run(step))
            m.scheduler.check()
            assert not m.scheduler.abort(1)
            m.drain()
            if known:
                m.ended.pop(1, None)
            m.verify([request for request in requests if request.id != 1 or not known])


def test_a_failed_step_can_be_dropped() -> None:
    m = machine()
    for i in range(3):
        m.scheduler.add(Request(i, "base", [1, 2, 3, 4, 5, 6, 7, i], 2, 9))
    for _ in range(3):
        m.step()
    assert m.scheduler.plan() is not None
    m.scheduler.reset()
    m.scheduler.check()
    assert m.scheduler.idle and m.scheduler.pool.used == 0 and m.scheduler.plan() is None
    m.ended.clear()
    again = Request(0, "base", [1, 2, 3, 4, 5, 6, 7, 9], 2, 9)
    m.scheduler.add(again)
    m.drain()
    m.verify([again])


def test_new_weights_reuse_nothing() -> None:
    m = machine()
    first, second = (Request(i, f"epoch {i}", [1, 2, 3, 4, 5, 6], 2, 5) for i in range(2))
    m.scheduler.add(first)
    m.drain()
    assert m.scheduler.drop_namespace("epoch 0") > 0 and m.scheduler.pool.cached == 0
    m.scheduler.add(second)
    m.drain()
    assert m.scheduler.pool.hits == 0
    m.verify([first, second])


def test_a_decode_step_is_cheap() -> None:
    scheduler = Scheduler(PagePool(4000, 16), 8192, 256)
    for i in range(8):
        scheduler.add(Request(i, "base", [i + 1] * (100 + 3 * i), 8, 300))
    m = Machine(scheduler)
    times: list[float] = []
    step = scheduler.plan()
    while step is not None:
        tokens = dict.fromkeys(m.sample(step), 1)
        began = time.perf_counter()
        scheduler.commit(step, tokens)
        step = scheduler.plan()
        times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 300e-6, "64 sequences, nothing joins or leaves"
