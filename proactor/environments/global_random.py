"""Python's and numpy's global random generators, lent to one environment at a time.

Environments of UserRL seed both in their constructors, and some draw from them in a step. A `RandomStream`
gives an environment streams of its own: while the environment runs they are the global ones, and what was
there before comes back afterwards. So nobody else sees a change, and what an environment draws depends
neither on other environments nor on the order of threads.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

State = tuple[Any, Any]

_free = threading.Condition()
_holder: RandomStream | None = None
_saved: State | None = None


def _read() -> State:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 the global generator is the point


def _write(state: State) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002


def seed_globals(seed: int) -> None:
    """Seed both generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


class RandomStream:
    """The global generators as one environment sees them; they begin as seeded with ``seed``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: State | None = None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While it is open the global generators are this stream's; another's use waits for its end."""
        global _holder, _saved
        with _free:
            _free.wait_for(lambda: _holder is None)
            _holder, _saved = self, _read()
            if self._state is None:
                seed_globals(self._seed)
            else:
                _write(self._state)
        try:
            yield
        finally:
            self._give_back(remember=True)

    def abandon(self) -> None:
        """End the use by a thread that hangs: the global generators are restored, and others may use them.
        What that thread draws or seeds later cannot be kept from anybody; a process can.
        """
        self._give_back(remember=False)

    def _give_back(self, remember: bool) -> None:
        global _holder, _saved
        with _free:
            if _holder is not self or _saved is None:
                return
            if remember:
                self._state = _read()
            _write(_saved)
            _holder = _saved = None
            _free.notify_all()
