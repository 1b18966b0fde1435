"""Named ranges of work, which a profile tells apart. They cost a call each while nobody listens.

    with ranged("sample: model"):
        ...

A name is "journey: part". Ranges nest; `Times` counts each for itself, without what lies inside of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

Listener = Callable[[str], AbstractContextManager[object]]
SILENCE: AbstractContextManager[object] = nullcontext()

_listener: Listener | None = None


def ranged(name: str) -> AbstractContextManager[object]:
    """A range of this name, for whoever listens."""
    return SILENCE if _listener is None else _listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let ``listener`` wrap each range of every thread. Listeners do not nest: the inner one hears alone."""
    global _listener  # one for all threads of a process, as torch's profiler is
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@dataclass(slots=True)
class Time:
    """Of one name: how often, seconds in all, and seconds without the ranges inside of it."""

    count: int = 0
    seconds: float = 0.0
    own: float = 0.0


class Times:
    """A listener that adds up time by name. ``clock``: replaceable in tests; it returns seconds.

    Asynchronous work of a GPU is counted where the host waits for it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.by_name: dict[str, Time] = {}
        self._clock, self._lock, self._inside = clock, threading.Lock(), threading.local()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A range of ``name``."""
        stack: list[float] = self._inside.__dict__.setdefault("stack", [])  # seconds of the ranges inside
        stack.append(0.0)
        begun = self._clock()
        try:
            yield
        finally:
            seconds, inside = self._clock() - begun, stack.pop()
            if stack:
                stack[-1] += seconds
            with self._lock:
                entry = self.by_name.setdefault(name, Time())
                entry.count += 1
                entry.seconds += seconds
                entry.own += seconds - inside
