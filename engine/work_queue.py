"""A queue of sampling work for ranks: `WorkQueue` and `Pulse` decide, `SharedQueue` keeps them in a store.

The work of a step is a list of items (whole dialogues, or groups), known to every rank. A rank leases the
longest that nobody has, as its sampler has room. A rank whose heart falls silent loses its leases; what it
completes after all still counts, unless another rank was faster: an item has one completion, the first.

Longest first, to whoever is free, ends at most 4/3 as late as the best schedule (R. L. Graham, 1969).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

LEASE = 10
"""Beats of one's own heart after which another one that stood still is taken for silent.

Counted in beats, not seconds: where the whole machine stood still, nobody is silent.
"""


@dataclass(frozen=True)
class WorkQueue:
    """Items 0 … n-1, each of which waits, is leased by a rank, or was completed by one. Never changed.

    ``costs``: expected cost of each item, above 0, in any unit. ``leases``, ``done``: item to rank.
    ``calls``: how often a rank called all of them together, because one was silent.
    """

    costs: tuple[float, ...]
    ranks: int
    leases: Mapping[int, int] = field(default_factory=dict)
    done: Mapping[int, int] = field(default_factory=dict)
    calls: int = 0

    @classmethod
    def deal(cls, costs: Sequence[float], ranks: int) -> WorkQueue:
        """The queue of a step: every rank begins with a lease on one of the longest items."""
        queue = cls(tuple(costs), ranks)
        return replace(queue, leases=dict(zip(queue._order, range(ranks), strict=False)))

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.costs)), key=lambda item: (-self.costs[item], item))

    @property
    def waiting(self) -> list[int]:
        """Items that nobody has, longest first."""
        return [item for item in self._order if item not in self.leases and item not in self.done]

    @property
    def finished(self) -> bool:
        """Whether every item was completed. It stays so."""
        return len(self.done) == len(self.costs)

    def held(self, rank: int) -> list[int]:
        """The items that ``rank`` has a lease on, in order."""
        return sorted(item for item, holder in self.leases.items() if holder == rank)

    def pull(self, rank: int) -> WorkQueue:
        """``rank`` has room: it gets the longest waiting item, unless it holds its part of what is left.

        Its part is an equal one: while all have room nothing waits, and no rank takes all because it was
        first.
        """
        waiting = self.waiting
        left = sum(cost for item, cost in enumerate(self.costs) if item not in self.done)
        if not waiting or self.ranks * sum(self.costs[item] for item in self.held(rank)) >= left:
            return self
        return replace(self, leases={**self.leases, waiting[0]: rank})

    def complete(self, rank: int, item: int) -> WorkQueue:
        """``rank`` has sampled ``item``, whoever has a lease on it. Later completions change nothing."""
        if item in self.done:
            return self
        leases = {other: holder for other, holder in self.leases.items() if other != item}
        return replace(self, leases=leases, done={**self.done, item: rank})

    def call(self, silent: Sequence[int] = ()) -> WorkQueue:
        """Call all ranks together; what the ``silent`` ones had on lease waits again."""
        leases = {item: holder for item, holder in self.leases.items() if holder not in silent}
        return replace(self, leases=leases, calls=self.calls + 1)

    def encode(self) -> str:
        """What changes, as text: `decode` of equal costs and ranks gives the same queue."""
        state = [sorted(self.leases.items()), sorted(self.done.items()), self.calls]
        return json.dumps(state, separators=(",", ":"))

    def decode(self, text: str | bytes) -> WorkQueue:
        """The state of an `encode`, with the costs and ranks of this queue."""
        leases, done, calls = json.loads(text)
        return replace(self, leases=dict(leases), done=dict(done), calls=calls)


class Pulse:
    """Which hearts stand still, seen from one rank: each of its own beats it looks at the others' counts."""

    def __init__(self, rank: int, ranks: int, lease: int = LEASE) -> None:
        self._rank, self._lease = rank, lease
        self._counts: list[int | None] = [None] * ranks
        self._still = [0] * ranks

    def beat(self, counts: Sequence[int]) -> list[int]:
        """The ranks whose count did not change during the last ``lease`` beats."""
        for rank, count in enumerate(counts):
            self._still[rank] = self._still[rank] + 1 if count == self._counts[rank] else 0
        self._counts = list(counts)
        return [r for r, still in enumerate(self._still) if still >= self._lease and r != self._rank]

    def met(self) -> None:
        """All ranks were heard of in another way."""
        self._still = [0] * len(self._still)


class SharedQueue:
    """A `WorkQueue` in a store of torch.distributed (any, here and below: what has its methods).

    A change is a function from queue to queue, applied to the latest one by compare-and-set. Every rank makes
    it with an equal ``queue`` and ``name``; the first to come writes it. Raises what the store raises.
    """

    def __init__(self, store: Any, name: str, rank: int, queue: WorkQueue) -> None:
        self._store, self._rank = store, rank
        self._key = name
        self._hearts = [f"{name}/heart/{other}" for other in range(queue.ranks)]
        self._text: str = queue.encode()
        self.queue = queue
        """As it was seen last."""
        self._see(store.compare_set(name, "", self._text))

    def refresh(self) -> WorkQueue:
        """The queue as it is."""
        return self._see(self._store.get(self._key))

    def change(self, change: Callable[[WorkQueue], WorkQueue]) -> WorkQueue:
        """Apply ``change``, which may be called more than once; returns the queue after it."""
        while True:
            before, after = self._text, change(self.queue).encode()
            if after == before:
                return self.queue
            self._see(self._store.compare_set(self._key, before, after))
            if self._text == after:
                return self.queue

    def beat(self) -> list[int]:
        """One beat of this rank's heart; returns the counts of all."""
        return [self._store.add(heart, int(rank == self._rank)) for rank, heart in enumerate(self._hearts)]

    def remove(self) -> None:
        """Take it out of the store, once no rank looks at it any more."""
        for key in (self._key, *self._hearts):
            self._store.delete_key(key)

    def _see(self, text: bytes) -> WorkQueue:
        self._text = text.decode()
        self.queue = self.queue.decode(self._text)
        return self.queue
