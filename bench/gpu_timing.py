"""Timing on a GPU: events around runs of calls, rotated inputs, alternating forms, and the card's ceilings.

A sample is a run of calls between two events. A waiting kernel is queued first, for about as long as the host
needs to queue the calls, so that the device never waits for the host inside a sample. The time of a call is
the device's; the host's time is recorded beside it. Each call takes the next of several copies of its
arguments, enough to push earlier ones out of the cache, and keeps its results until that copy's next turn.
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
"""Approximate length of a sample, far above the resolution of events."""
MOST_CALLS = 32
"""Most calls in a sample: their kernels must fit in the launch queue."""
LEAST_SAMPLES, MOST_SAMPLES = 5, 40
CACHE_TURNS = 3
"""Size of all rotated arguments, in multiples of the cache."""
MOST_COPIES = 96
LONGEST_LEAD = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call on the device, over ``samples`` runs of ``calls`` calls.

    ``low``, ``high``: the 20th and 80th percentile. ``host``: median seconds to queue a call.
    """

    median: float
    low: float
    high: float
    samples: int
    calls: int
    host: float

    @property
    def spread(self) -> float:
        """Distance of the percentiles, relative to the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that the card reaches in this run.

    ``copy``: bytes read and written per second. ``product``: bf16 operations per second of a square product.
    """

    copy: float
    product: float

    def floor(self, nbytes: int, flops: int) -> tuple[float, str]:
        """(least seconds at these rates, what limits them: "memory" or "arithmetic")."""
        moving, computing = nbytes / self.copy, flops / self.product
        return max(moving, computing), "memory" if moving >= computing else "arithmetic"


class Budget:
    """Seconds to spend, of which ``reserve`` are kept for the end. ``clock``: replaceable in tests."""

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
        """Whether a job fits: ``least`` seconds, and as many as the longest job so far, must remain."""
        return self.left >= max(least, self._longest)

    def took(self, seconds: float) -> None:
        """Record the length of a job."""
        self._longest = max(self._longest, seconds)


class Stopwatch(Protocol):
    """The clock of a device, for `measure`."""

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        """(device seconds, host seconds) of all ``calls``; ``lead``: about the host's time to queue them."""

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
    """A call that keeps its last result, so that the next result is allocated elsewhere."""

    __slots__ = ("_call", "_result")

    def __init__(self, call: Run) -> None:
        self._call, self._result = call, None

    def __call__(self) -> object:
        self._result = self._call()  # type: ignore[assignment]
        return self._result


def measure(watch: Stopwatch, forms: Mapping[str, Sequence[Run]], seconds: float) -> dict[str, Timing]:
    """Time forms in turns for about ``seconds``, after one round of all copies to warm up.

    ``forms``: for each, the same call on rotated copies of its arguments.
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
    """The timing of samples of (device, host) seconds per call."""
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
    """The number of copies of the arguments that exceed the cache and fit in memory.

    ``read``: bytes that a call reads of a copy. ``held``: bytes that a copy takes in memory.
    """
    wanted = -(-CACHE_TURNS * cache // max(read, 1)) + 1
    return max(1, min(wanted, free // max(held, 1), MOST_COPIES))


def copy_arguments(arguments: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """``count`` copies of the arguments, each in its own memory; the first is the original."""
    return [arguments, *(copy.deepcopy(arguments) for _ in range(count - 1))]


# --- ceilings ---


def copy_rate(size: int, seconds: float) -> float:
    """Bytes per second of a copy of ``size`` bytes, each read and written."""
    return 2 * size / seconds


def product_rate(n: int, seconds: float) -> float:
    """Operations per second of a product of two n x n matrices."""
    return 2 * n**3 / seconds


def _timed_copy(watch: Stopwatch, device: torch.device, size: int) -> tuple[Timing, int]:
    source = torch.randn(max(size // 2, 1), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return measure(watch, {"copy": [lambda: target.copy_(source)]}, 0.5)["copy"], source.nbytes


def ceilings(
    watch: Stopwatch, device: torch.device, free: int, quick: bool
) -> tuple[Ceilings, dict[str, Any]]:
    """(the ceilings, their record), measured on random data; of several products the best counts."""
    timing, size = _timed_copy(watch, device, min(2**32, free // 8))
    copied = copy_rate(size, timing.median)
    record: dict[str, Any] = {
        "copy": {"bytes": size, **dataclasses.asdict(timing), "bytes_per_second": copied}
    }
    rates = []
    for n in (8192,) if quick else (4096, 8192, 16384):
        if 6 * n * n > free // 2:
            continue
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        timing = measure(watch, {"product": [partial(torch.mm, a, b, out=out)]}, 0.5)["product"]
        rates.append(product_rate(n, timing.median))
        record[f"product {n}"] = {**dataclasses.asdict(timing), "flop_per_second": rates[-1]}
    return Ceilings(copied, max(rates)), record
