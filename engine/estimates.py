"""What the load controller learns while it runs: how long samples get, and how long steps take.

State machines without clocks: the same observations in the same order give the same estimates.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from statistics import median

FEW = 4
"""Observations below which a mean or a median says nothing."""
ENOUGH = 24
"""Degrees of freedom below which the slope is not fitted."""
REFIT = 16
"""Steps after which the costs are estimated again."""
REMEMBERED = 32
"""Estimates of the slope that are averaged, later ones with more weight: one alone is noisy."""


class LengthEstimate:
    """Remaining tokens of a sample, from those that ended last. ``window``: how many are remembered;
    ``enough``: how many have to have ended before they are believed. One thread observes; any may read.
    """

    def __init__(self, window: int, enough: int) -> None:
        self._window, self._enough = window, enough
        self._order: deque[int] = deque()
        # the lengths in order, and sums of the longest one, two and so on: replaced together, for readers
        self._lengths: tuple[list[int], list[int]] = [], []
        self.mean = 0.0
        """Mean length of the samples remembered; 0 without any."""
        self.deviation = 0.0
        """Standard deviation of the lengths, in tokens."""

    def observe(self, lengths: Sequence[int]) -> None:
        """Samples ended with these numbers of tokens."""
        ordered = self._lengths[0].copy()
        for length in lengths:
            if len(self._order) == self._window:
                del ordered[bisect_left(ordered, self._order.popleft())]
            self._order.append(length)
            insort(ordered, length)
        if lengths:
            count, tails = len(self._order), list(accumulate(reversed(ordered)))
            self._lengths = ordered, tails
            self.mean = tails[-1] / count
            self.deviation = max(0.0, sum(x * x for x in self._order) / count - self.mean**2) ** 0.5

    def remaining(self, age: int, limit: int) -> float:
        """Tokens that a sample of ``age`` tokens, of at most ``limit``, is expected to draw yet.

        The mean over those that got longer than ``age``; where those are few, it is expected to double. All
        of ``limit`` until enough samples have ended.
        """
        ordered, tails = self._lengths
        if len(ordered) < self._enough:
            return limit - age
        longer = len(ordered) - bisect_right(ordered, age)
        if longer < FEW:
            return min(limit - age, max(age, 1))
        return min(limit - age, tails[longer - 1] / longer - age)


class StepEstimate:
    """Cost of a decoding step by bucket: a median a bucket, and one slope over the tokens that are read.

    Costs are in seconds, or in whatever the caller counts. Only steps without prompts are timed by bucket;
    what prompts add to a step gives the cost of their rows. ``window``: timings kept a bucket; ``memory``:
    steps after which a bucket that was not timed again is forgotten.
    """

    def __init__(self, buckets: Sequence[int], window: int, memory: int) -> None:
        self.buckets = tuple(buckets)
        self.row_cost = 0.0
        """What a row of a prompt adds to a step; 0 before the first was seen."""
        self.visited: list[int] = []
        """Buckets that were timed, and not too long ago."""
        self._window, self._memory = window, memory
        self._timings: dict[int, deque[tuple[int, float]]] = {}  # (tokens read, cost), by bucket
        self._seen: dict[int, int] = {}
        self._rows: deque[float] = deque(maxlen=window)
        self._time = 0
        self._slope, self._fits = 0.0, 0
        self._starts: list[float] = []  # cost without context, by bucket visited

    def bucket(self, sequences: int) -> int:
        """The smallest bucket that holds so many sequences; the largest where none does."""
        return self.buckets[min(bisect_left(self.buckets, sequences), len(self.buckets) - 1)]

    def observe(self, decodes: int, kv: int, rows: int, cost: float) -> None:
        """A step of ``decodes`` sequences that read ``kv`` tokens, and of ``rows`` rows of prompts."""
        self._time += 1
        if rows:
            alone = self.cost(decodes, kv / decodes) if decodes and self.visited else 0.0
            self._rows.append(max(0.0, cost - alone) / rows)
            self.row_cost = median(self._rows)
            return
        bucket = self.bucket(decodes)
        timings = self._timings.setdefault(bucket, deque(maxlen=self._window))
        timings.append((kv, cost))
        self._seen[bucket] = self._time
        if len(timings) == FEW or self._time % REFIT == 0:
            self._fit()

    def cost(self, sequences: int, context: float, optimism: float = 0.0) -> float:
        """A step of ``sequences`` that each read ``context`` tokens.

        Between buckets that were timed: on the line through them. Below: as the lowest, since a step has a
        floor. Above: on the line through the two highest, flattened by ``optimism``, 0 to 1.
        """
        known, starts = self.visited, self._starts
        at = bisect_right(known, sequences)
        low = max(at - 1, 0)
        start = starts[low]
        if known[low] < sequences and len(known) > 1:
            other = at if at < len(known) else low - 1
            slope = max(0.0, (starts[other] - start) / (known[other] - known[low]))
            start += slope * (sequences - known[low]) * (1 - optimism if at == len(known) else 1)
        return start + self._slope * sequences * context

    def _fit(self) -> None:
        """The slope from how costs vary inside the buckets; then a median of what remains, a bucket."""
        for bucket in [b for b, seen in self._seen.items() if self._time - seen > self._memory]:
            del self._seen[bucket], self._timings[bucket]
        groups = {b: self._timings[b] for b in sorted(self._timings) if len(self._timings[b]) >= FEW}
        self._fit_slope(list(groups.values()))
        self.visited = list(groups)
        rests = [median(cost - self._slope * kv for kv, cost in timings) for timings in groups.values()]
        self._starts = list(accumulate(rests, max))  # a step of more sequences costs no less

    def _fit_slope(self, groups: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Least squares with a mean a bucket, shrunk by its standard error, averaged over many fits."""
        across = along = spread = 0.0  # sums of products of deviations from the buckets' means
        for timings in groups:
            count = len(timings)
            middle, usual = sum(kv for kv, _ in timings) / count, sum(cost for _, cost in timings) / count
            across += sum((kv - middle) * (cost - usual) for kv, cost in timings)
            along += sum((kv - middle) ** 2 for kv, _ in timings)
            spread += sum((cost - usual) ** 2 for _, cost in timings)
        freedom = sum(map(len, groups)) - len(groups) - 1
        if freedom >= ENOUGH and along > 0 and across > 0:
            slope = across / along
            error = max(0.0, spread - slope * across) / freedom / along  # its variance
            self._fits = min(self._fits + 1, REMEMBERED)
            self._slope += (slope * max(0.0, 1 - 4 * error / slope**2) - self._slope) / self._fits
        most = min((median(cost / kv for kv, cost in timings) for timings in groups), default=0.0)
        self._slope = min(self._slope, most)
