"""The queue that ranks share: each item is completed once, whatever comes in between."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import product

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proactor.engine.work_queue import LEASE, Pulse, SharedQueue, WorkQueue

COSTS = st.lists(st.integers(1, 50).map(float), min_size=1, max_size=12)


class Ranks(RuleBasedStateMachine):
    """Ranks that pull, sample, stand still, wake up and die, at whatever moment."""

    @initialize(costs=COSTS, ranks=st.integers(1, 4))
    def begin(self, costs: list[float], ranks: int) -> None:
        self.queue = WorkQueue.deal(costs, ranks)
        self.alive = set(range(ranks))
        self.running = {rank: set(self.queue.held(rank)) for rank in range(ranks)}
        self.kept: Counter[int] = Counter()
        self.owner: dict[int, int] = {}

    def _one(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.alive)))

    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        rank = self._one(data)
        before = self.queue
        self.queue = before.pull(rank)
        gained = set(self.queue.held(rank)) - set(before.held(rank))
        assert len(gained) <= 1 and gained <= set(before.waiting[:1])
        self.running[rank] |= set(self.queue.held(rank))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A rank has sampled something, on a lease that may have ended long ago."""
        rank = self._one(data)
        if self.running[rank]:
            self._complete(rank, data.draw(st.sampled_from(sorted(self.running[rank]))))

    def _complete(self, rank: int, item: int) -> None:
        self.running[rank].discard(item)
        was_done = item in self.queue.done
        self.queue = self.queue.complete(rank, item)
        if self.queue.done[item] == rank and not was_done:
            self.kept[item] += 1
            self.owner[item] = rank
        assert self.queue.complete(rank, item) == self.queue, "a repeated completion changes something"

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.alive.discard(self._one(data))

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """A rank is taken for silent, rightly or not."""
        silent = data.draw(st.sampled_from(range(self.queue.ranks)))
        calls = self.queue.calls
        self.queue = self.queue.call([silent])
        assert not self.queue.held(silent) and self.queue.calls == calls + 1

    @invariant()
    def every_item_is_in_one_place(self) -> None:
        queue = self.queue
        places = [*queue.waiting, *queue.leases, *queue.done]
        assert sorted(places) == list(range(len(queue.costs)))
        assert queue.waiting == sorted(queue.waiting, key=lambda item: (-queue.costs[item], item))

    @invariant()
    def the_first_completion_stands(self) -> None:
        assert dict(self.queue.done) == self.owner and set(self.kept.values()) <= {1}

    @invariant()
    def text_keeps_everything(self) -> None:
        assert WorkQueue(self.queue.costs, self.queue.ranks).decode(self.queue.encode()) == self.queue

    def teardown(self) -> None:
        """The ranks that are left complete everything: nothing was lost, nothing is done twice."""
        if not hasattr(self, "queue"):
            return
        self.queue = self.queue.call(sorted(set(range(self.queue.ranks)) - self.alive))
        for rank in sorted(self.alive) * (2 * len(self.queue.costs) + 1):
            self.queue = self.queue.pull(rank)
            self.running[rank] |= set(self.queue.held(rank))
            for item in sorted(self.running[rank]):
                self._complete(rank, item)
        assert self.queue.finished and sorted(self.kept) == list(range(len(self.queue.costs)))
        assert set(self.kept.values()) == {1}


Ranks.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestRanks = Ranks.TestCase


@given(COSTS, st.integers(1, 4))
def test_nothing_waits_while_all_have_room_and_no_rank_takes_it_all(costs: list[float], ranks: int) -> None:
    queue = WorkQueue.deal(costs, ranks)
    for rank in range(ranks):  # one after the other: the first has every chance to take all
        while (more := queue.pull(rank)) != queue:
            queue = more
        held = [costs[item] for item in queue.held(rank)]
        assert sum(held) - min(held, default=0) < sum(costs) / ranks
    assert not queue.waiting


@given(st.lists(st.integers(1, 30).map(float), min_size=1, max_size=6), st.integers(2, 3))
@settings(deadline=None, max_examples=60)
def test_packing_is_balanced(costs: list[float], ranks: int) -> None:
    """Ranks with room for one unit: the end is within 4/3 - 1/(3 m) of the best packing."""
    queue, free = WorkQueue.deal(costs, ranks), [0.0] * ranks
    while not queue.finished:
        busy = [rank for rank in range(ranks) if queue.held(rank)]
        rank = min(busy, key=lambda r: free[r] + costs[queue.held(r)[0]])
        [item] = queue.held(rank)
        free[rank] += costs[item]
        queue = queue.complete(rank, item).pull(rank)
    best = min(
        max(sum(c for c, r in zip(costs, packing, strict=True) if r == rank) for rank in range(ranks))
        for packing in product(range(ranks), repeat=len(costs))
    )
    assert max(free) <= best * (4 / 3 - 1 / (3 * ranks)) + 1e-9


def test_a_heart_that_stands_still_is_silent() -> None:
    pulse = Pulse(0, 3)
    beats = [pulse.beat([n, n if n < 5 else 5, 2 * n]) for n in range(5 + LEASE)]
    assert beats == [[]] * (4 + LEASE + 1) and pulse.beat([99, 5, 99]) == [1]
    pulse.met()
    assert pulse.beat([100, 5, 100]) == [], "a rank that came to a meeting was heard of"


def test_nobody_is_silent_where_all_stood_still() -> None:
    pulse = Pulse(0, 2)
    for n in range(100):  # each beat of one's own, the other moved too, however long it took
        assert pulse.beat([n, n]) == []


def test_a_heart_that_beats_again_is_heard() -> None:
    pulse = Pulse(1, 2, lease=3)
    assert [pulse.beat([c, 0]) for c in (0, 0, 0, 1, 1, 1, 1)] == [[]] * 6 + [[0]]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_at_one_store_complete_each_item_once(ranks: int) -> None:
    """Threads at a store that is everybody's, of which one loses its leases again and again."""
    store, costs = dist.HashStore(), [float(1 + 7 * i % 11) for i in range(40)]
    kept: list[list[int]] = [[] for _ in range(ranks)]
    begin = threading.Barrier(ranks)

    def work(rank: int) -> None:
        shared = SharedQueue(store, "q", rank, WorkQueue.deal(costs, ranks))
        begin.wait()
        while not shared.refresh().finished:
            shared.change(lambda queue: queue.pull(rank))
            for item in shared.queue.held(rank):
                if rank == 1:
                    shared.change(lambda queue: queue.call([0]))
                if shared.change(lambda queue, item=item: queue.complete(rank, item)).done[item] == rank:  # type: ignore[misc]
                    kept[rank].append(item)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    everything = sorted(item for items in kept for item in items)
    assert everything == list(range(len(costs)))


def test_a_queue_leaves_nothing_in_the_store() -> None:
    store = dist.HashStore()
    before = store.num_keys()
    first, second = (SharedQueue(store, "q", rank, WorkQueue.deal([1.0, 2.0], 2)) for rank in range(2))
    assert first.beat() == [1, 0] and second.beat() == [1, 1]
    first.remove()
    assert store.num_keys() == before
