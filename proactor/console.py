"""Output of a run: progress bars in a terminal, plain lines elsewhere, and tables of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

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
from rich.table import Table

LINE_EVERY = 10.0
"""Seconds between two progress lines of one phase outside a terminal."""

NAMES = {
    "reward": "turn reward",
    "values_right": "values right",
    "first_fire_f1": "first-fire F1",
    "recall": "window recall",
    "precision": "window precision",
    "on_time_f1": "on-time F1",
    "turns_saved": "turns saved / 100",
    "false_per_100": "false fires / 100",
    "similarity_first_fire_f1": "first-fire F1, similar",
    "pri": "PRI",
    "ac": "AC",
    "pt": "PT",
    "ftr": "FTR (low is good)",
    "rar": "RAR",
}


class Terminal:
    """A `progress.Progress` on a console; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Bars(
            *columns, TextColumn("[dim]{task.fields[text]}"), console=console, disable=not console.is_terminal
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


def windows_caption(shares: Mapping[str, float | None] | None) -> str | None:
    """Caption with ``null_share`` (masked windows) and ``width_0_share``; None without shares."""
    if shares is None:
        return None
    null, point = shares.get("null_share") or 0.0, shares.get("width_0_share") or 0.0
    return f"windows: {null:.0%} unknown (masked), {point:.0%} of the known ones a single turn"


def metrics_table(
    title: str,
    systems: Mapping[str, Mapping[str, float | None]],
    keys: Sequence[str],
    change: Mapping[str, Any] | None = None,
    windows: Mapping[str, float | None] | None = None,
) -> Table:
    """Systems side by side. ``change``: per key the interval of after - before, bold where it excludes 0.
    ``windows``: shares for `windows_caption`, by default those of the first system that has any.
    """
    shares = windows or next((s for s in systems.values() if "null_share" in s), None)
    table = Table(title=title, title_justify="left", caption=windows_caption(shares), caption_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in systems:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    if change:
        table.add_column("change [95%]", justify="right", no_wrap=True)
    for key in keys:
        cells = ["–" if (value := system[key]) is None else f"{value:.3f}" for system in systems.values()]
        if change:
            cells.append(_change(**change[key]))
        table.add_row(NAMES.get(key, key), *cells)
    return table


def _change(estimate: float | None, low: float | None, high: float | None) -> str:
    """An interval as a cell, bold where it excludes 0; – where it is undefined."""
    if estimate is None or low is None or high is None:
        return "–"
    text = rf"{estimate:+.3f} \[{low:+.3f}, {high:+.3f}]"
    return f"[bold]{text}[/bold]" if low > 0 or high < 0 else text
