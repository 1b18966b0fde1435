"""Threads of this process: which ones a computation starts, and when they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch


def threads() -> set[str]:
    """The ids of all threads, OpenMP's among them."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


def compute() -> torch.Tensor:
    """Something large enough for two threads."""
    return torch.ones(1 << 20).exp_()


def started_by(call: Callable[[], object]) -> set[str]:
    """The threads that are there after ``call`` and were not before."""
    before = threads()
    call()
    return threads() - before


def ended(workers: set[str], within: float) -> bool:
    """Whether no worker is left ``within`` so many seconds: they are detached, and nobody can join them."""
    deadline = time.monotonic() + within
    while workers & threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    return not workers & threads()
