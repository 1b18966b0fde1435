"""OpenMP's workers on a CPU: each thread that computes in parallel has a pool of its own.

GNU's OpenMP, which torch's Linux builds bring, lets workers wait by spinning for a while, unless all pools
together have more threads than there are processors: then they sleep at once, and each small product waits
for one to wake. A pool that a thread once used counts for as long as that thread lives. With a pool beside
the one that decodes, a step of a small model took a half longer (bench/NOTES.md, "Two pools").
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

_process = os.getpid()
TORCHS = Path(torch.__file__).parent / "lib"
"""Where torch's wheels have the libraries that they bring."""
SOFT = 1
"""`omp_pause_soft`: workers end, settings stay (OpenMP 5.0, 3.6.1)."""


def release_workers() -> None:
    """End the calling thread's workers; its next parallel product starts new ones, in some 100 us.

    Without GNU's OpenMP, nothing; nor in a forked process, whose workers did not come along: to end them
    would wait for ever.
    """
    if os.getpid() == _process and (pause := _pause()) is not None:
        pause(SOFT)


@lru_cache(maxsize=1)
def _pause() -> Callable[[int], int] | None:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None  # not Linux
    loaded = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "libgomp" in line}
    own = {path for path in loaded if Path(path).parent == TORCHS}  # others bring one too: sentencepiece
    if len(found := own or loaded) != 1:  # which of several is torch's cannot be told
        return None
    pause = getattr(ctypes.CDLL(found.pop()), "omp_pause_resource_all", None)
    if pause is not None:
        pause.argtypes, pause.restype = [ctypes.c_int], ctypes.c_int
    return pause
