"""How a benchmark talks to its sides: a process each, one line of JSON per command, and one line back.

While one side works, the other waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
ALLOCATOR = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
"""glibc settings. Without them, page faults of large tensors double the time of both sides."""


def environment() -> dict[str, str]:
    """The environment of every side."""
    fixed = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **ALLOCATOR, **fixed}


def setting(*packages: str) -> dict[str, Any]:
    """Fields of a record: versions of ``packages``, and the sides' settings of threads and memory."""
    shown = ("OMP_", "MALLOC_", "MKL_", "LD_PRELOAD")
    return {
        "versions": {name: metadata.version(name) for name in packages},
        "environment": {key: value for key, value in environment().items() if key.startswith(shown)},
    }


class Side:
    """A process that answers commands. ``log`` gets its output, and is shown when the process dies."""

    def __init__(self, name: str, module: str, setup: dict[str, Any], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                cwd=ROOT,
                env=environment(),
                text=True,
            )
        self.call(**setup)

    def call(self, **command: Any) -> dict[str, Any]:
        """Send a command; returns the reply, with its wall-clock ``seconds`` and its ``cpu_seconds``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        start, busy = time.perf_counter(), self._cpu_seconds()
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its log says why
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.name} died (exit code {self.process.wait()}):\n{self.log.read_text()[-3000:]}"
            )
        reply: dict[str, Any] = json.loads(line)
        return {**reply, "seconds": time.perf_counter() - start, "cpu_seconds": self._cpu_seconds() - busy}

    def _cpu_seconds(self) -> float:
        """User and system time of all threads so far, which a busy machine changes least."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


class Channel:
    """The side's end: reads commands, writes replies. The output of libraries goes to stderr."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next command; the process ends with its parent."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        command: dict[str, Any] = json.loads(line)
        return command

    def send(self, **reply: Any) -> None:
        """Answer the last command."""
        self._out.write(json.dumps(reply) + "\n")
        self._out.flush()
