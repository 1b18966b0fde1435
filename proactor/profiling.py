"""A profile of whatever runs inside of it: time by named range, operations, memory, and a Chrome trace.

Ranges are counted from beginning to end. Operations and the trace are of the first seconds of work, since a
trace of minutes is gigabytes. Files in the folder:

    ranges.json   wall seconds; by range: count, seconds, own seconds, resident MB at its ends at most;
                  by operation (of the traced seconds): count, own seconds
    trace.json    torch's trace; open it in ui.perfetto.dev or chrome://tracing
    memory.json   resident memory, and a card's, over time, as counters of the same form
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proactor.engine import Times, atomic_file, listening

SPACING = 0.05
"""Least seconds between two readings of memory."""
MOST = 25
"""Operations that are kept: those with most time of their own."""


class Profile:
    """Listens to the ranges of this process while it is entered; writes its files into ``folder`` at the end.

    ``seconds``: how long the trace is; 0 for none. Raises OSError for a folder that cannot be written, at
    once.
    """

    def __init__(self, folder: str | Path, seconds: float = 10.0) -> None:
        self.folder, self.seconds = Path(folder), seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self.times, self.wall = Times(), 0.0
        self.operations: list[dict[str, Any]] = []
        self._memory: list[tuple[float, float, float]] = []  # seconds, MB resident, MB of the card
        self._most: dict[str, float] = {}
        self._lock, self._traced_from = threading.Lock(), 0.0
        self._trace: Any = None  # torch's profiler, which is imported when the first range begins
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._stack.enter_context(listening(self._range))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.wall = time.perf_counter() - self._began
        with self._lock:
            self._end_trace()
        atomic_file(self.folder / "ranges.json", (json.dumps(self.record(), indent=2) + "\n").encode())
        counters = [
            {
                "ph": "C",
                "name": "memory",
                "pid": 0,
                "ts": 1e6 * at,
                "args": {"resident MB": mb, "card MB": card},
            }
            for at, mb, card in self._memory
        ]
        atomic_file(self.folder / "memory.json", json.dumps({"traceEvents": counters}).encode())

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        import torch

        if self._trace is None and self.seconds:
            self._begin_trace()
        nvtx = torch.cuda.is_available() and torch.cuda.is_initialized()
        with self.times(name), torch.profiler.record_function(name):
            if nvtx:
                torch.cuda.nvtx.range_push(name)
            try:
                yield
            finally:
                if nvtx:
                    torch.cuda.nvtx.range_pop()
        self._read_memory(name, nvtx)
        if self._trace is not None and time.perf_counter() - self._traced_from > self.seconds:
            with self._lock:
                self._end_trace()

    def _read_memory(self, name: str, card: bool) -> None:
        import torch

        at = time.perf_counter() - self._began
        with self._lock:
            if self._memory and at - self._memory[-1][0] < SPACING and name in self._most:
                return
            mb = resident_mb()
            self._most[name] = max(self._most.get(name, 0.0), mb)
            self._memory.append((at, mb, torch.cuda.memory_allocated() / 1e6 if card else 0.0))

    def _begin_trace(self) -> None:
        import torch
        from torch._C._profiler import _ExperimentalConfig

        with self._lock:
            if self._trace is not None:
                return
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            threads = _ExperimentalConfig(profile_all_threads=True)
            self._trace = torch.profiler.profile(activities=activities, experimental_config=threads)
            self._trace.start()
            self._traced_from = time.perf_counter()

    def _end_trace(self) -> None:
        if self._trace is None or not self.seconds:
            return
        self.seconds = 0.0  # once
        self._trace.stop()
        self._trace.export_chrome_trace(str(self.folder / "trace.json"))
        names = set(self.times.by_name)
        rows = [
            {
                "name": event.key,
                "count": event.count,
                "own": 1e-6 * (event.self_cpu_time_total + getattr(event, "self_device_time_total", 0)),
            }
            for event in self._trace.key_averages()
            if event.key not in names
        ]
        self.operations = sorted(rows, key=lambda row: -row["own"])[:MOST]

    def record(self) -> dict[str, Any]:
        """What ``ranges.json`` holds."""
        ranges = {
            name: {
                "count": spent.count,
                "seconds": spent.seconds,
                "own": spent.own,
                "resident_mb": self._most.get(name),
            }
            for name, spent in sorted(self.times.by_name.items(), key=lambda item: -item[1].own)
        }
        return {"wall": self.wall, "ranges": ranges, "operations": self.operations}


def resident_mb() -> float:
    """Resident memory of this process in 10^6 bytes; 0 where the system does not say."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 1e6
