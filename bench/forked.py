"""Children of a process that has imported torch: forked in milliseconds, stopped, killed, and read.

A child must be forked before its parent computes anything: threads of torch do not live on in it.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

PATIENCE = 120.0
"""Seconds after which a child that should have ended hangs, and is killed."""


class Ended(NamedTuple):
    """How a child ended: its exit code or minus the signal, stdout and stderr."""

    code: int
    output: str
    errors: str


class Child:
    """A forked process that runs ``work``; its output goes to ``<place>.out`` and ``<place>.err``."""

    def __init__(
        self, place: Path, work: Callable[[], object], environment: Mapping[str, str] | None = None
    ) -> None:
        self.place = place
        place.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work, environment or {})

    def _live(self, work: Callable[[], object], environment: Mapping[str, str]) -> None:
        atexit._clear()  # the parent's: they remove its temporary folders
        os.environ.update(environment)
        for descriptor, file in enumerate((self._output, self._errors), start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - a child must not return into its parent's code
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    @property
    def _output(self) -> Path:
        return self.place.with_suffix(".out")

    @property
    def _errors(self) -> Path:
        return self.place.with_suffix(".err")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal. The child must not have been waited for."""
        os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        """Wait until the child has stopped (SIGSTOP)."""
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def wait_until_default(self, number: signal.Signals) -> None:
        """Wait until the child, which catches a signal, no longer does."""
        status = Path(f"/proc/{self.pid}/status")
        deadline = time.monotonic() + PATIENCE
        while int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end. A child that lives longer than ``patience`` seconds is killed.

        Waits are added up, so that a time in which both were stopped does not count.
        """
        waited = 0.0
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if waited > patience:
                self.kill()
            time.sleep(0.01)
            waited += 0.01
        code = os.waitstatus_to_exitcode(found[1])
        return Ended(code, self._output.read_text(), self._errors.read_text())


def fork_ranks(count: int, folder: Path, work: Callable[[int], object]) -> list[Child]:
    """``count`` ranks as torchrun starts them, each of which runs ``work(rank)``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Child(
            folder / f"rank{rank}",
            lambda rank=rank: work(rank),  # type: ignore[misc]
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
