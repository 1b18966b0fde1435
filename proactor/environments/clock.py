"""`Clock`: the time that a call to an environment takes, without what it waits for its turn somewhere.

Many environments ask one user, who answers a few at a time: who stands in a line there is not slow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_HERE = threading.local()
"""``clock``: that of the call which runs in this thread."""


class Clock:
    """Counts down ``limit`` seconds, from `start` on."""

    def __init__(self, limit: float) -> None:
        self._lock = threading.Lock()
        self._end, self._since = time.monotonic() + limit, float("nan")
        self.limit, self._stopped = limit, False

    def start(self) -> None:
        """Begin to count."""
        with self._lock:
            self._end = time.monotonic() + self.limit

    def left(self) -> float:
        """Seconds that are left; the same for as long as it stands."""
        with self._lock:
            return self._end - (self._since if self._stopped else time.monotonic())

    @contextmanager
    def here(self) -> Iterator[None]:
        """Be the clock of this thread."""
        _HERE.clock = self
        try:
            yield
        finally:
            del _HERE.clock

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Count nothing for as long."""
        with self._lock:
            self._since, self._stopped = time.monotonic(), True
        try:
            yield
        finally:
            with self._lock:
                self._end += time.monotonic() - self._since
                self._stopped = False


@contextmanager
def in_line() -> Iterator[None]:
    """Wait for a turn: the clock of this thread stands, where there is one."""
    clock: Clock | None = getattr(_HERE, "clock", None)
    if clock is None:
        yield
        return
    with clock.standing():
        yield
