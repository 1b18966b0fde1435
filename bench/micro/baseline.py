"""Ratios of parts to references, their saved baselines, and what has become slower.

A ratio is a part's least time over that of a reference loop run right before and after it. It moves far less
than either time when a machine is busy. Baselines are saved by processor, since a ratio depends on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bench.records import slug, write_json

FOLDER = Path(__file__).parent / "baselines"
ALLOWED = 1.6
"""A ratio above this multiple of its baseline is a regression; a doubled time is caught."""
RETRIES = 4
"""Times that a part is measured again before it counts as slower: noise only ever adds."""

_LEFT, _RIGHT = torch.ones(192, 192), torch.ones(192, 192)


def python_loop() -> None:
    """The reference of parts in plain Python: calls, dictionaries, lists; about 0.2 ms."""
    counts: dict[int, int] = {}
    kept = []
    for i in range(1500):
        counts[i % 64] = counts.get(i % 64, 0) + 1
        kept.append(i)


def products() -> None:
    """The reference of parts in torch: a product and a pass over its result; about 0.2 ms."""
    out = _LEFT @ _RIGHT
    for _ in range(4):
        out = out * 1.01


REFERENCES: dict[str, Callable[[], None]] = {"python": python_loop, "torch": products}


def least_seconds(call: Callable[[], object], seconds: float = 0.05) -> float:
    """The shortest of the calls that fit into ``seconds``, at least three."""
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - begun), calls + 1
    return best


def baseline_file(machine: str, folder: Path = FOLDER) -> Path:
    """The file of a processor's baseline."""
    return folder / f"{slug(machine)}.json"


def read_baseline(machine: str, folder: Path = FOLDER) -> dict[str, float]:
    """Saved ratios by part; none where the processor has no baseline."""
    file = baseline_file(machine, folder)
    if not file.exists():
        return {}
    return {str(name): float(ratio) for name, ratio in json.loads(file.read_text())["ratios"].items()}


def save_baseline(machine: str, ratios: Mapping[str, float], folder: Path = FOLDER) -> Path:
    """Write the ratios as the processor's baseline; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = baseline_file(machine, folder)
    rounded = {name: float(f"{ratio:.4g}") for name, ratio in sorted(ratios.items())}
    write_json(file, {"machine": machine, "ratios": rounded})
    return file


def slower(ratio: float, baseline: float | None) -> bool:
    """Whether a ratio is a regression; never without a baseline."""
    return baseline is not None and ratio > ALLOWED * baseline
