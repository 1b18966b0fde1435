"""Progress of a run: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

LINE_EVERY = 10.0
"""Seconds between two progress lines of one phase outside a terminal."""


class Terminal:
    """A `progress.Progress` on a console; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Bars(
            *columns,
            TextColumn("{task.fields[text]}", style="dim", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._phase: TaskID | None = None
        self._inner: tuple[str, TaskID] | None = None
        self._name, self._done, self._total, self._last_line = "", 0, 0, 0.0

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Begin a phase: a new bar."""
        self._name, self._done, self._total, self._last_line = name, done, total, 0.0
        self._phase = self._bars.add_task(name, total=total, completed=done, text="")

    def step(self, text: str) -> None:
        """Advance the bar; outside a terminal, print a line every `LINE_EVERY` seconds and at the end."""
        self._done += 1
        if self._phase is not None:
            self._bars.update(self._phase, completed=self._done, text=text)
        now = time.monotonic()
        if not self.console.is_terminal and (
            now - self._last_line >= LINE_EVERY or self._done == self._total
        ):
            self._last_line = now
            self.console.print(
                f"{self._name} {self._done}/{self._total}: {text}", markup=False, highlight=False
            )

    def substep(self, name: str, done: int, total: int) -> None:
        """A second bar for work inside a step; it disappears when full."""
        if self._inner is None or self._inner[0] != name:
            if self._inner is not None:
                self._bars.remove_task(self._inner[1])
            self._inner = name, self._bars.add_task(f"  {name}", total=total, text="")
        self._bars.update(self._inner[1], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._inner[1])
            self._inner = None

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, markup=False, highlight=False)
