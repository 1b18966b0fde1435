"""Preemption: pages run out, sequences give theirs back, and nothing but the time shows it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import Engine, EngineError, Sampling
from proactor.engine.controller import Decision, Readings, replay
from proactor.engine.load import LoadPolicy
from proactor.engine.step import Request, RequestTooLarge
from tests.engine.engines import drawn, idle, load, prompts, sampler
from tests.engine.machine import Whims, expected, machine


@dataclass(frozen=True)
class Hopeful:
    """Expects every sample to end with its next token."""

    batch: int = 64

    def decide(self, readings: Readings) -> Decision:
        room = readings.pages_total - readings.pages_used - readings.pages_promised
        return Decision(self.batch, room, 64, readings.pages_short, 0.0)

    def expected(self, age: int, limit: int) -> float:
        return 1.0


# -- the scheduler ---


def lasting(first_id: int, lengths: list[int], new: int) -> list[Request]:
    """Requests of one sample each that draws all of its ``new`` tokens."""
    requests: list[Request] = []
    for length in lengths:
        tries = (Request(first_id + len(requests), "base", [k] * length, 1, new) for k in count(50))
        used = [request.prompt_ids[0] for request in requests]
        requests.append(next(t for t in tries if len(expected(t, 0)) == new and t.prompt_ids[0] not in used))
    return requests


def test_what_was_preempted_goes_on_where_it_was() -> None:
    m = machine(pages=12, size=4, policy=Hopeful())
    requests = [*(Request(i, "base", [50 + i] * 7, 2, 12) for i in range(4)), *lasting(4, [7, 7], 12)]
    for request in requests:
        m.scheduler.add(request)
    m.drain()
    counters = m.scheduler.counters()
    assert counters["preemptions"] > 0 and counters["tokens_recomputed"] > 0
    m.verify(requests)


def test_only_what_had_gone_is_computed_again() -> None:
    m = machine(pages=12, size=4, policy=Hopeful())
    requests = lasting(0, [7, 7, 7, 7], 12)
    for request in requests:
        m.scheduler.add(request)
    m.drain()
    new = sum(len(request.prompt_ids) for request in requests)
    assert m.scheduler.counters()["preemptions"] > 0
    # a sample that goes on computes the token that it drew last, as it would have done in its next step
    again = m.scheduler.counters()["tokens_recomputed"]
    assert new + again <= m.prefill_rows <= new + again + m.scheduler.preemptions
    m.verify(requests)


def test_the_least_computed_gives_way_and_is_first_to_go_on() -> None:
    m = machine(pages=7, size=4, policy=Hopeful(batch=3))
    for request in (*lasting(0, [3, 9, 5], 8), Request(3, "base", [40], 1, 1)):
        m.scheduler.add(request)
    running: list[set[int]] = []
    while m.scheduler.preemptions < 1:
        assert m.step()
        running.append({request.id for request in m.scheduler._running.requests})
    assert running[-2] == {0, 1, 2} and running[-1] == {1, 2}
    assert [request.id for request in m.scheduler._admission.line] == [0, 3]
    m.scheduler.add(Request(4, "base", [41], 1, 1, priority=1))
    m.drain()
    assert list(m.ended).index(4) < list(m.ended).index(3)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shapes=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=6
    ),
    pages=st.integers(3, 14),
    size=st.integers(1, 4),
    seqs=st.integers(1, 6),
)
def test_every_request_that_fits_alone_ends(
    seed: int, shapes: list[tuple[int, int, int]], pages: int, size: int, seqs: int
) -> None:
    """Whatever a policy promises: nothing livelocks, and each sample has its tokens."""
    for policy in (Whims(seed, pages), Hopeful()):
        m, requests = machine(pages, size, seqs + 2, seqs, 5, policy=policy), []
        for i, (length, n, new) in enumerate(shapes):
            request = Request(i, "base", [1 + i % 2] * length, n, new)
            try:
                m.scheduler.add(request)
            except RequestTooLarge:
                continue
            requests.append(request)
        m.drain()
        m.verify(requests)


def test_parked_pages_go_before_anything_is_preempted() -> None:
    m = machine(pages=8, size=4, parked=4, policy=Hopeful())
    parked = Request(0, "base", [9] * 12, 1, 1)
    m.scheduler.add(parked)
    m.drain()
    m.verify([parked])
    m.scheduler.park(0, "base", [9] * 12)
    assert m.scheduler.counters()["pages_parked"] == 3
    request = lasting(1, [15], 16)[0]
    m.scheduler.add(request)
    while m.step():
        assert not m.scheduler.preemptions
    assert m.scheduler.counters()["pages_parked"] < 3
    m.verify([request])


def test_the_last_sample_of_a_group_does_not_hold_the_rest() -> None:
    """A group has one sample that is much longer than its others: the requests behind it end before it."""
    for k in count(50):
        group = Request(0, "base", [k] * 5, 6, 14)
        lengths = sorted(len(expected(group, sample)) for sample in group.samples)
        if lengths[-1] == 14 and lengths[-2] <= 4:
            break
    others = [Request(i, "base", [10 + i] * 5, 1, 2) for i in range(1, 6)]
    m, done = machine(pages=40, size=4, seqs=4), list[int]()
    for request in (group, *others):
        m.scheduler.add(request)
    while m.step():
        done += [i for i, ends in m.ended.items() if i not in done and any(end.last for end in ends.values())]
    assert len(done) == 6 and done[-1] == 0
    m.verify([group, *others])


# -- the engine ---

LONG = Sampling(n=3, max_tokens=24, seed=4, ignore_eos=True, temperature=1.1)


def under(monkeypatch: pytest.MonkeyPatch, policy: LoadPolicy, folder: Path, **changes: Any) -> Engine:
    monkeypatch.setattr("proactor.engine.policy.load_policy", lambda *_: policy)
    return load(folder, deterministic=True, **changes)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_the_same_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    ids = [*prompts(3, shared=6), *prompts(2, length=5, seed=1)]
    expected = drawn(load(folder, deterministic=True).sample(ids, LONG))
    for policy in (Hopeful(), Whims(seed, 24)):
        engine = under(monkeypatch, policy, folder, kv_tokens=96)
        assert drawn(engine.sample(ids, LONG)) == expected
        counters = engine.counters()
        assert counters["preemptions"] > 0 and counters["tokens_recomputed"] > 0 and idle(engine)


def test_samples_longer_than_those_before(folder: Path) -> None:
    """The controller itself: it has seen short samples only, promises too little, and learns."""
    ids, short = prompts(6), Sampling(n=8, max_tokens=2, ignore_eos=True)
    engine = load(folder, deterministic=True, kv_tokens=256)
    engine.sample(ids, short)
    found = engine.sample(ids, LONG)
    assert engine.counters()["preemptions"] > 0
    assert drawn(found) == drawn(load(folder, deterministic=True, batching="fixed").sample(ids, LONG))


def test_fixed_limits_preempt_nothing(folder: Path) -> None:
    engine = load(folder, kv_tokens=128, batching="fixed")
    engine.sample(prompts(6), Sampling(n=8, max_tokens=2, ignore_eos=True))
    engine.sample(prompts(6), LONG)
    assert engine.counters()["preemptions"] == 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_log_of_the_engine_is_decided_alike(folder: Path, tmp_path: Path, deterministic: bool) -> None:
    log = tmp_path / "deep" / "load.jsonl"
    for _ in range(2):  # a second engine goes on with the file
        engine = load(folder, deterministic=deterministic, kv_tokens=256, batching_log=str(log))
        engine.sample(prompts(6), Sampling(n=8, max_tokens=2, ignore_eos=True))
        engine.sample(prompts(6), LONG)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert list(replay(lines)) == []
    rows = [json.loads(line) for line in lines]
    assert sum("config" in row for row in rows) == 2
    assert len(rows) - 2 > 2 * 24 and any(row["readings"]["pages_short"] for row in rows if "readings" in row)
    changed = json.loads(lines[-1])
    changed["decision"]["max_seqs"] += 1
    assert [number for number, _, _ in replay([*lines[:-1], json.dumps(changed)])] == [len(lines)]


def test_decisions_of_deterministic_mode_do_not_depend_on_time(folder: Path, tmp_path: Path) -> None:
    decisions = []
    for name in "ab":
        engine = load(folder, deterministic=True, kv_tokens=256, batching_log=str(tmp_path / name))
        engine.sample(prompts(6), LONG)
        rows = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        decisions.append([row["decision"] for row in rows[1:]])
    assert decisions[0] == decisions[1]


def test_a_log_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    engine = load(folder, batching_log=str(tmp_path))
    with pytest.raises((EngineError, OSError), match=str(tmp_path)):
        engine.sample(prompts(1), Sampling(max_tokens=2))


def test_a_stream_gives_groups_while_the_last_samples_of_another_run(folder: Path) -> None:
    engine, ids = load(folder, max_batch=4), prompts(4)
    slow = Sampling(n=6, max_tokens=40, ignore_eos=True)
    quick = Sampling(n=2, max_tokens=3, ignore_eos=True)

    async def order() -> list[int]:
        return [ids.index(g.prompt_ids) async for g in engine.stream(ids, [slow, quick, quick, quick])]

    assert asyncio.run(order())[-1] == 0
    assert sampler(engine).scheduler.idle
