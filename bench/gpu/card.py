"""What the card is and what it reaches in this run: facts for the record, and the ceilings of its rates."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch

from bench.gpu.timing import Stopwatch, Timing, measure
from proactor.kernels.ceilings import Ceilings

PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "trl", "liger-kernel", "peft")
PRODUCTS = (4096, 8192, 16384)
"""Sizes of square products; the first that a quick run takes is the second."""


def versions() -> dict[str, str | None]:
    """Versions of everything that is timed; None where it is not installed."""
    installed: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        **installed,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "python": sys.version.split()[0],
    }


def readings() -> dict[str, str] | None:
    """Driver, clocks, power and temperature from nvidia-smi; None without it."""
    queries = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(queries, values, strict=True)) if len(values) == len(queries) else None


def facts(device: torch.device) -> dict[str, Any]:
    """The device for the record: name, capability, multiprocessors, memory, free memory and cache (bytes)."""
    if device.type != "cuda":
        free = 2**30
        return {"name": "dry run", "capability": "", "multiprocessors": 1} | {
            "memory": free,
            "free": free,
            "cache": 4096,
        }
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": total,
        "free": free,
        "cache": properties.L2_cache_size,
    }


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
    watch: Stopwatch, device: torch.device, free: int, products: Sequence[int] = PRODUCTS
) -> tuple[Ceilings, dict[str, Any]]:
    """(the ceilings, their record), measured on random data; of several products the best counts."""
    timing, size = _timed_copy(watch, device, min(2**32, free // 8))
    copied = copy_rate(size, timing.median)
    record: dict[str, Any] = {
        "copy": {"bytes": size, **dataclasses.asdict(timing), "bytes_per_second": copied}
    }
    rates = []
    for n in products:
        if 6 * n * n > free // 2:
            continue
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        timing = measure(watch, {"product": [partial(torch.mm, a, b, out=out)]}, 0.5)["product"]
        rates.append(product_rate(n, timing.median))
        record[f"product {n}"] = {**dataclasses.asdict(timing), "flop_per_second": rates[-1]}
    return Ceilings(copied, max(rates)), record
