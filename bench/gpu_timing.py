"""How time is taken on a card: device events around runs of calls, inputs rotated past the cache, forms by
turns, and the ceilings of the same run.

A sample is a run of calls between two events. A kernel that only waits goes in front, for about as long as
the host needs to queue the calls, so that the device never waits for the host inside a sample: the time of a
call is the device's, and the host's own time for it is kept beside it. Each call takes the next of several
copies of its arguments, enough to push earlier ones out of the cache, and its results stay alive until that
copy's next turn.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

Run = Callable[[], object]
SAMPLE_SECONDS = 2e-3
"""About how long a sample lasts: far above the resolution of events."""
MOST_CALLS = 32
"""Calls in a sample: their kernels must fit in the launch queue."""
LEAST_SAMPLES, MOST_SAMPLES = 5, 40
CACHE_TURNS = 3
"""Arguments of one round of the rotation, in sizes of the cache."""
MOST_COPIES = 96
LONGEST_LEAD = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call on the device: median and the 20th and 80th percentile of ``samples`` runs of
    ``calls``; ``host``: to queue it.
    """

    median: float
    low: float
    high: float
    samples: int
    calls: int
    host: float

    @property
    def spread(self) -> float:
        """Width between the percentiles, relative to the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the card reaches in this run: bytes read and written a second by a copy, bf16 operations a second
    by a square product.
    """

    copy: float
    product: float

    def floor(self, nbytes: int, flops: int) -> tuple[float, str]:
        """(Seconds below which no form can come, what binds: "memory" or "arithmetic")."""
        moving, computing = nbytes / self.copy, flops / self.product
        return max(moving, computing), "memory" if moving >= computing else "arithmetic"


class Budget:
    """Seconds to spend, ``reserve`` of them kept for the end, by a clock that can be replaced."""

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, reserve: float = 0.0
    ) -> None:
        self.seconds, self.reserve, self._clock = seconds, reserve, clock
        self._start = clock()
        self._longest = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds that remain before the reserve, not below 0."""
        return max(0.0, self.seconds - self.reserve - self.spent)

    def allows(self, least: float) -> bool:
        """Whether a job fits: ``least`` seconds and as long as the longest so far must remain."""
        return self.left >= max(least, self._longest)

    def took(self, seconds: float) -> None:
        """Note how long a job took."""
        self._longest = max(self._longest, seconds)


class Stopwatch(Protocol):
    """What `measure` needs of a device."""

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        """(Device seconds, host seconds) of all ``calls`` together; the host needs about ``lead`` seconds to
        queue them.
        """

    def now(self) -> float:
        """A clock in seconds."""


class DeviceStopwatch:
    """CUDA and ROCm events."""

    def __init__(self) -> None:
        self._rate = 1e9
        cycles = 2_000_000
        times = [self._between(lambda: torch.cuda._sleep(cycles)) for _ in range(3)]
        self._rate = cycles / min(times)

    def _between(self, work: Run) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        """See `Stopwatch`."""
        host = 0.0

        def work() -> None:
            nonlocal host
            begun = time.perf_counter()
            for call in calls:
                call()
            host = time.perf_counter() - begun

        torch.cuda.synchronize()
        waiting = min(1.5 * lead + 50e-6, LONGEST_LEAD)
        torch.cuda._sleep(int(waiting * self._rate))
        return self._between(work), host

    def now(self) -> float:
        """See `Stopwatch`."""
        return time.perf_counter()


class Held:
    """A call that keeps its last result, so that the next copy's result lies elsewhere."""

    __slots__ = ("_call", "_result")

    def __init__(self, call: Run) -> None:
        self._call, self._result = call, None

    def __call__(self) -> object:
        self._result = self._call()  # type: ignore[assignment]
        return self._result


def measure(watch: Stopwatch, forms: Mapping[str, Sequence[Run]], seconds: float) -> dict[str, Timing]:
    """Time ``forms`` (for each the same call on rotated copies) by turns for about ``seconds``, after a round
    of every copy to warm up.
    """
    turns: dict[str, Iterator[Run]] = {}
    counts: dict[str, int] = {}
    leads: dict[str, float] = {}
    for name, calls in forms.items():
        held = [Held(call) for call in calls]
        watch.sample(held, 0.0)
        device, host = watch.sample(held[:MOST_CALLS], 0.0)
        each = max(device / min(len(held), MOST_CALLS), 1e-9)
        counts[name] = max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / each)))
        leads[name] = host / min(len(held), MOST_CALLS)
        turns[name] = itertools.cycle(held)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    end = watch.now() + seconds
    for round_ in range(MOST_SAMPLES):
        if round_ >= LEAST_SAMPLES and watch.now() >= end:
            break
        for name, n in counts.items():
            device, host = watch.sample([next(turns[name]) for _ in range(n)], leads[name] * n)
            leads[name] = host / n
            taken[name].append((device / n, host / n))
    return {name: summary(values, counts[name]) for name, values in taken.items()}


def summary(values: Sequence[tuple[float, float]], calls: int) -> Timing:
    """The timing of (device, host) seconds a call."""
    device = sorted(d for d, _ in values)
    last = len(device) - 1
    host = statistics.median(h for _, h in values)
    low, high = device[round(0.2 * last)], device[round(0.8 * last)]
    return Timing(statistics.median(device), low, high, len(device), calls, host)


# --- rotation ---


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(tensors(v) for v in value.values())
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(tensors(v) for v in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from itertools.chain.from_iterable(
            tensors(getattr(value, f.name)) for f in dataclasses.fields(value)
        )


def nbytes(value: Any) -> int:
    """Bytes of all tensors in ``value``."""
    return sum(t.nbytes for t in tensors(value))


def copies(read: int, held: int, cache: int, free: int) -> int:
    """How many copies of arguments outrun ``cache`` when a call reads ``read`` bytes of them, and fit in
    ``free`` when each takes ``held``.
    """
    wanted = -(-CACHE_TURNS * cache // max(read, 1)) + 1
    return max(1, min(wanted, free // max(held, 1), MOST_COPIES))


def rotated(arguments: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """``count`` sets of the arguments in memory of their own, the first as given."""
    return [arguments, *(copy.deepcopy(arguments) for _ in range(count - 1))]


# --- ceilings ---


def copy_rate(size: int, seconds: float) -> float:
    """Bytes a second of a copy of ``size`` bytes: each is read and written."""
    return 2 * size / seconds


def product_rate(n: int, seconds: float) -> float:
    """Operations a second of a product of two n x n matrices."""
    return 2 * n**3 / seconds


def _timed_copy(watch: Stopwatch, device: torch.device, size: int) -> tuple[Timing, int]:
    source = torch.randn(max(size // 2, 1), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return measure(watch, {"copy": [lambda: target.copy_(source)]}, 0.5)["copy"], source.nbytes


def ceilings(
    watch: Stopwatch, device: torch.device, free: int, quick: bool
) -> tuple[Ceilings, dict[str, Any]]:
    """Measure them on random data, with the record of each attempt: the best counts."""
    found, size = _timed_copy(watch, device, min(2**32, free // 8))
    copied = copy_rate(size, found.median)
    record: dict[str, Any] = {
        "copy": {"bytes": size, **dataclasses.asdict(found), "bytes_per_second": copied}
    }
    rates = []
    for n in (8192,) if quick else (4096, 8192, 16384):
        if 6 * n * n > free // 2:
            continue
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        found = measure(watch, {"product": [partial(torch.mm, a, b, out=out)]}, 0.5)["product"]
        rates.append(product_rate(n, found.median))
        record[f"product {n}"] = {**dataclasses.asdict(found), "flop_per_second": rates[-1]}
    return Ceilings(copied, max(rates)), record
