"""The rates that projections of time assume: operations of products and bytes copied, a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from proactor.engine.config import EngineConfig
from proactor.engine.device import choose_device, choose_dtype
from proactor.engine.model_config import ModelConfig
from proactor.kernels.linear import fastest_cpu_linear, library_linear

ROWS, OUTPUTS, INPUTS = 512, 8192, 4096
"""Largest product that is timed."""
COPIED = 256 << 20
"""Bytes of the copy that is timed: more than caches hold."""
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Rates:
    """``product``: operations a second of large products; ``copy``: bytes a second, each read and written.
    ``source``: where they come from.
    """

    product: float
    copy: float
    source: str


def measure_rates(config: ModelConfig, options: EngineConfig) -> Rates:
    """The rates of the device that ``options`` name, in its dtype: the best of a few repeats.

    The product is of the model's widest linear, or a part of it. Raises EngineError for a device that is not
    there.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    outputs, inputs = min(2 * config.intermediate_size, OUTPUTS), min(config.hidden_size, INPUTS)
    x = torch.randn(ROWS, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    source = torch.ones(COPIED // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    linear = fastest_cpu_linear() if device.type == "cpu" else library_linear
    product = _best(lambda: linear(x, weight, None), device)
    copied = _best(lambda: target.copy_(source), device)
    name = "this CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Rates(
        2 * ROWS * outputs * inputs / product,
        2 * COPIED / copied,
        f"measured on {name}: a product of {ROWS} x {inputs} x {outputs} in {str(dtype)[6:]}, a copy",
    )


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Least seconds of some runs, the first of which is not timed."""
    least = float("inf")
    for repeat in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - began) if repeat else least
    return least
