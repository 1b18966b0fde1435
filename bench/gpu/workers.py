"""Processes that run jobs: a kernel that breaks the card's context, or hangs, costs one row and its process.

A process runs one job, and the next one imports torch meanwhile. When a task breaks it, is out of time or
takes the card down, that task is a failed row and a fresh process goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.gpu.task import Job, Row, Setting, Task

START = 120.0
"""Seconds until a process must begin its first task: importing, and the context on the card."""
LOG_END = 3000
"""Characters of a process's output that a failed row has."""
DRY_PATIENCE = 20
"""A dry run waits so much longer: its machine may be busy."""
ENDED = "the process ended"
Rows = Callable[[Sequence["Row"]], None]


def serve(pipe: Connection, log: Path) -> None:
    """A process's life: import, wait for (job, setting, names of tasks that are done), run the others."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    from bench.gpu.jobs import tasks_of
    from bench.gpu.model import collect
    from bench.gpu.task import run_task
    from bench.gpu.timing import stopwatch
    from proactor.engine.device import prepare_allocator

    prepare_allocator()  # as `Engine.load` does
    with contextlib.suppress(EOFError):  # the parent has no job for it
        job, setting, done = pipe.recv()
        watch = stopwatch(setting.torch_device)
        for task in tasks_of(job, setting):
            if task.name in done:
                continue
            pipe.send((task.name, None))
            rows, lost = run_task(task, watch)
            pipe.send((task.name, rows))
            if lost:
                os._exit(1)  # the context is gone, and tearing it down may hang
            collect()
        pipe.send(("", None))


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, the parent's end of its pipe, and the file that has what it prints."""

    process: Any
    pipe: Connection
    log: Path

    def end(self) -> int | None:
        """Kill it; returns the exit code that it had of itself, if any."""
        self.process.join(0.2)
        code: int | None = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return code

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace").strip()[-LOG_END:]


class Workers:
    """Runs jobs one after the other, each in a process that has already imported torch.

    ``left``: seconds that remain for everything. What a process printed stands in its failed rows ("log").
    """

    def __init__(self, left: Callable[[], float]) -> None:
        self.left = left
        self._logs = TemporaryDirectory(prefix="bench-gpu-")
        self._context = get_context("spawn")
        self._count = 0
        self._spare = self._start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._spare.end()
        self._logs.cleanup()

    def _start(self) -> Worker:
        self._count += 1
        log = Path(self._logs.name) / f"{self._count}.log"
        log.touch()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs, log), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours, log)

    def run(self, job: Job, setting: Setting, tasks: Sequence[Task], each: Rows) -> list[str]:
        """Run a job's tasks, with ``each`` given the rows of one; returns names of tasks without a row.

        Those are the ones for which no time is left.
        """
        done: list[str] = []
        while len(done) < len(tasks) and self.left() > 0:
            worker, self._spare = self._spare, self._start()
            before = len(done)
            try:
                current, problem = self._follow(worker, (job, setting, list(done)), tasks, done, each)
            finally:
                code = worker.end()
            if not problem or (current and self.left() <= 0):
                break
            if problem == ENDED:
                problem += f" with {code}: {(worker.said().splitlines() or ['no message'])[-1][:200]}"
            failed = {"name": current or job.name, "failed": problem, "log": worker.said()}
            if current:
                each([failed])
                done.append(current)
            elif len(done) == before:  # it never began: the next process would not either
                each([failed])
                return []
        return [task.name for task in tasks if task.name not in done]

    def _follow(
        self,
        worker: Worker,
        request: tuple[Job, Setting, list[str]],
        tasks: Sequence[Task],
        done: list[str],
        each: Rows,
    ) -> tuple[str, str]:
        """Follow one process until it ends or must: (the task that ran then, why it ended; "" where done)."""
        patience = DRY_PATIENCE if request[1].dry else 1
        limits = {task.name: task.limit for task in tasks}
        current = ""
        try:
            worker.pipe.send(request)
            while True:
                limit = min(patience * limits.get(current, START), self.left())
                if not worker.pipe.poll(limit):
                    return current, f"stopped after {limit:.0f} s"
                name, rows = worker.pipe.recv()
                if not name:
                    return "", ""
                current = name if rows is None else ""
                if rows is not None:
                    each([row | {"log": worker.said()} if "failed" in row else row for row in rows])
                    done.append(name)
        except (EOFError, OSError):
            return current, ENDED
