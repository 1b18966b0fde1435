"""Timing on a GPU: events around runs of calls, rotated inputs, alternating forms.

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
from typing import Any, Protocol

import torch
from torch import Tensor

Run = Callable[[], object]
SAMPLE_SECONDS = 2e-3
"""Approximate length of a sample, far above the resolution of events."""
MOST_CALLS = 32
"""Most calls in a sample: their kernels must fit in the launch queue."""
LEAST_SAMPLES, MOST_SAMPLES = 5, 40
LOOP_SECONDS, LOOP_CALLS, LEAST_LOOPS = 0.25, 16, 3
"""Approximate length of a loop of `steady`, its most calls, and the fewest loops."""
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


class HostStopwatch:
    """The host's clock, for a device that computes while it is called: dry runs on a CPU."""

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        """See `Stopwatch`."""
        begun = self.now()
        for call in calls:
            call()
        return (self.now() - begun,) * 2

    def now(self) -> float:
        """See `Stopwatch`."""
        return time.perf_counter()


def stopwatch(device: torch.device) -> Stopwatch:
    """The clock of ``device``."""
    return DeviceStopwatch() if device.type == "cuda" else HostStopwatch()


def wait(device: torch.device) -> None:
    """Wait for everything queued on ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def steady(watch: Stopwatch, call: Run, seconds: float) -> Timing:
    """Time ``call`` as a loop runs it, queued back to back: the slower of device and host, for ``seconds``.

    For calls that take milliseconds, such as whole steps. Two calls warm up.
    """
    watch.sample([call], 0.0)
    device, _ = watch.sample([call], 0.0)
    count = max(1, min(LOOP_CALLS, round(LOOP_SECONDS / max(device, 1e-9))))
    taken: list[tuple[float, float]] = []
    end = watch.now() + seconds
    while len(taken) < LEAST_LOOPS or (watch.now() < end and len(taken) < MOST_SAMPLES):
        device, host = watch.sample([call] * count, 0.0)
        taken.append((device / count, host / count))
    return summary(taken, count)


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
