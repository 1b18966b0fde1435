"""How long calls take, to choose between forms of a product on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any


def shortest(calls: Sequence[Callable[[], Any]], tries: int) -> list[float]:
    """Seconds of each call, the least of ``tries``. They take turns, so that a busy moment meets all."""
    seconds = [math.inf] * len(calls)
    for _ in range(tries):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds
