"""The signals by which a run is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The list of signals received: the first SIGTERM or Ctrl-C. A second one ends the process at once.

    Only the main thread may set handlers: in any other thread the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, previous in old.items():
            signal.signal(other, previous)

    for number in old:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
