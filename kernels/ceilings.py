"""What a device reaches in this run: bytes copied and operations multiplied a second, and a call's time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

COPIED = 256 << 20
"""Bytes of the copy: far more than a processor's cache holds."""
PRODUCT = {"cpu": 1536, "cuda": 8192}
"""Size of the square product."""
LEAST_CALLS = 3


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that a device reaches.

    ``copy``: bytes read and written per second. ``product``: operations per second of a square product.
    """

    copy: float
    product: float

    def floor(self, nbytes: float, flops: float) -> tuple[float, str]:
        """(least seconds at these rates, what limits them: "memory" or "arithmetic")."""
        moving, computing = nbytes / self.copy, flops / self.product
        return max(moving, computing), "memory" if moving >= computing else "arithmetic"


def seconds_of(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, after one to warm up, over about ``seconds`` and at least three calls.

    The host's clock around a synchronised call: meant for calls of milliseconds.
    """

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)


def measure_ceilings(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> Ceilings:
    """The rates of ``device`` for products in ``dtype``, in about twice ``seconds``."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device, seconds)
    n = PRODUCT.get(device.type, PRODUCT["cuda"])
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product = partial(torch.mm, a, b, out=torch.empty_like(a))
    return Ceilings(copied, 2 * n**3 / seconds_of(product, device, seconds))
