"""What the load controller learns while it runs: how long samples get, and how long steps take.

State machines without clocks: the same observations in the same order give the same estimates.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from statistics import median

FEW = 4
"""Samples below which a mean says nothing: a sample older than all but so many is expected to double."""


class LengthEstimate:
    """Remaining tokens of a sample, from those that ended last. ``window``: how many are remembered;
    ``enough``: how many have to have ended before they are believed.
    """

    def __init__(self, window: int, enough: int) -> None:
        self._window, self._enough = window, enough
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        self._sums: list[int] | None = None  # of the sorted lengths, from the end

    def observe(self, lengths: Sequence[int]) -> None:
        """Samples ended with these numbers of tokens."""
        for length in lengths:
            if len(self._order) == self._window:
                old = self._order.popleft()
                del self._sorted[bisect_right(self._sorted, old) - 1]
            self._order.append(length)
            insort(self._sorted, length)
        if lengths:
            self._sums = None

    @property
    def known(self) -> bool:
        """Whether enough samples have ended."""
        return len(self._order) >= self._enough

    @property
    def mean(self) -> float:
        """Mean length of the samples remembered; 0 without any."""
        return sum(self._order) / len(self._order) if self._order else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the lengths, in tokens."""
        if len(self._order) < 2:
            return 0.0
        mean = self.mean
        return float((sum((x - mean) ** 2 for x in self._order) / len(self._order)) ** 0.5)

    def remaining(self, age: int, limit: int) -> float:
        """Tokens that a sample of ``age`` tokens, of at most ``limit``, is expected to draw yet.

        The mean over those that got longer than ``age``; all of ``limit`` until enough samples have ended.
        """
        if not self.known:
            return limit - age
        if self._sums is None:
            self._sums = list(accumulate(reversed(self._sorted)))
        longer = len(self._sorted) - bisect_right(self._sorted, age)
        if longer < FEW:
            return min(limit - age, max(age, 1))
        return min(limit - age, self._sums[longer - 1] / longer - age)


class StepEstimate:
    """Cost of a decoding step by bucket: a median a bucket, and one slope over the tokens that are read.

    ``cost`` is in seconds, or in whatever the caller counts. Only steps without prompts are timed by bucket;
    what prompts add to a step gives the cost of their rows.
    """

    def __init__(self, buckets: Sequence[int], window: int, memory: int) -> None:
        self.buckets = tuple(buckets)
        self._window, self._memory = window, memory
        self._steps: dict[int, deque[tuple[int, float]]] = {}
        self._seen: dict[int, int] = {}
        self._rows: deque[float] = deque(maxlen=window)
        self._time = 0
        self._stale = True
        self._slope = 0.0
        self._starts: dict[int, float] = {}

    def bucket(self, sequences: int) -> int:
        """The smallest bucket that holds so many sequences; the largest where none does."""
        return next((b for b in self.buckets if b >= sequences), self.buckets[-1])

    def observe(self, decodes: int, kv: int, rows: int, cost: float) -> None:
        """A step of ``decodes`` sequences that read ``kv`` tokens, and of ``rows`` rows of prompts."""
        self._time += 1
        if rows:
            alone = self.cost(decodes, kv / decodes) if decodes and self._starts else 0.0
            self._rows.append(max(0.0, cost - alone) / rows)
            return
        bucket = self.bucket(decodes)
        self._steps.setdefault(bucket, deque(maxlen=self._window)).append((kv, cost))
        self._seen[bucket] = self._time
        self._stale = True

    @property
    def row_cost(self) -> float:
        """What a row of a prompt adds to a step; 0 before the first was seen."""
        return median(self._rows) if self._rows else 0.0

    @property
    def visited(self) -> list[int]:
        """Buckets that were timed, and not too long ago."""
        self._refresh()
        return sorted(self._starts)

    def cost(self, sequences: int, context: float, optimism: float = 0.0) -> float:
        """A step of ``sequences`` that each read ``context`` tokens.

        Between buckets that were timed: on the line through them. Below: as the lowest, since a step has a
        floor. Above: on the line through the two highest, flattened by ``optimism``, 0 to 1.
        """
        self._refresh()
        assert self._starts, "no step was timed"
        known = sorted(self._starts)
        at = bisect_right(known, sequences)
        low = known[max(at - 1, 0)]
        start = self._starts[low]
        if low < sequences and len(known) > 1:
            other = known[at] if at < len(known) else known[-2]
            slope = (self._starts[other] - start) / (other - low)
            if at == len(known):
                slope *= 1 - optimism
            start += max(0.0, slope) * (sequences - low)
        return max(start, 1e-12) + self._slope * sequences * context

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._stale = False
        for bucket in [b for b, seen in self._seen.items() if self._time - seen > self._memory]:
            del self._seen[bucket], self._steps[bucket]
        top = bottom = 0.0
        for steps in self._steps.values():
            mean_kv = sum(kv for kv, _ in steps) / len(steps)
            mean_cost = sum(cost for _, cost in steps) / len(steps)
            top += sum((kv - mean_kv) * (cost - mean_cost) for kv, cost in steps)
            bottom += sum((kv - mean_kv) ** 2 for kv, _ in steps)
        most = min((median(c / max(kv, 1) for kv, c in steps) for steps in self._steps.values()), default=0.0)
        self._slope = min(max(0.0, top / bottom), most) if bottom else 0.0
        self._starts = {
            bucket: median(cost - self._slope * kv for kv, cost in steps)
            for bucket, steps in self._steps.items()
        }
