"""Tables for a terminal that stay readable when it is narrow, and the plain names of the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import HEAVY_HEAD, Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import PaddingDimensions
from rich.table import Table
from rich.text import Text

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
    "held_out_loss": "held-out loss",
    "pri": "PRI",
    "ac": "AC",
    "pt": "PT",
    "ftr": "FTR (low is good)",
    "rar": "RAR",
}

_UNLIMITED = 100_000
_NAME_WIDTH = 24
"""A longer name is folded where the console is too narrow."""


def plain_name(key: str) -> str:
    """A metric's name for a reader."""
    return NAMES.get(key, key.replace("_", " "))


def metric_digits(key: str) -> int:
    """Decimals of a metric in a dense table: one for counts in 100 dialogues, two for shares."""
    return 1 if key in ("turns_saved", "false_per_100") else 2


@dataclass(frozen=True, slots=True)
class Column:
    """``drop``: columns with a higher number leave a narrow table first; None: never.

    ``name``: at the left; figures stand at the right.
    """

    title: str
    drop: int | None = None
    name: bool = False


class FittedTable:
    """A table that fits the width of the console on which it is printed.

    Where it is too wide, titles break at spaces and intervals move below their estimates; then columns leave
    in the order of `Column.drop`, and a line below names them. Title, columns and cells are rich markup.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[Column],
        *,
        caption: str | None = None,
        box: Box = HEAVY_HEAD,
        padding: PaddingDimensions = (0, 1),
    ) -> None:
        self.title, self.columns, self.caption, self.box, self.padding = title, columns, caption, box, padding
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One cell for each column, in their order."""
        assert len(cells) == len(self.columns)
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        wide = options.update(width=_UNLIMITED)
        leaving = [c for c in self.columns if c.drop is not None]
        leaving.sort(key=lambda c: -(c.drop or 0))
        table = self._drawn(frozenset(), width, narrow=False)
        for gone in range(len(leaving) + 1):
            if console.measure(table, options=wide).maximum <= width:
                break
            table = self._drawn(frozenset(c.title for c in leaving[:gone]), width, narrow=True)
        yield table

    def _drawn(self, gone: frozenset[str], width: int, *, narrow: bool) -> Table:
        notes = [self.caption] if self.caption else []
        if gone:
            names = ", ".join(c.title for c in self.columns if c.title in gone)
            notes.append(f"left out at {width} columns: {names}")
        table = Table(
            title=self.title,
            title_justify="left",
            caption="\n".join(notes) or None,
            caption_justify="left",
            box=self.box,
            padding=self.padding,
        )
        for i, column in enumerate(self.columns):
            if column.title in gone:
                continue
            cells = [_stacked(row[i]) if narrow else row[i] for row in self.rows]
            title = _broken(column.title, cells) if narrow else column.title
            if column.name:
                table.add_column(
                    title, overflow="fold", no_wrap=not narrow, max_width=_NAME_WIDTH if narrow else None
                )
            else:
                table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            shown = [cell for column, cell in zip(self.columns, row, strict=True) if column.title not in gone]
            table.add_row(*(_stacked(cell) if narrow else cell for cell in shown))
        return table


def _stacked(cell: str) -> str:
    """The cell with its interval on a second line."""
    return cell.replace(r" \[", "\n\\[")


def _broken(title: str, cells: Sequence[str]) -> str:
    """The title in lines no wider than the widest cell, or than its own longest word."""
    lines_of = [Text.from_markup(cell).plain.split("\n") for cell in cells]
    room = max((cell_len(line) for lines in lines_of for line in lines), default=0)
    lines: list[str] = []
    for word in title.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


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
) -> FittedTable:
    """Systems side by side; those on the right leave a narrow table first, before and after never. Title and
    names are plain text.

    ``change``: per key the interval of after - before, bold where it excludes 0. ``windows``: shares for
    `windows_caption`, by default those of the first system that has any.
    """
    shares = windows or next((s for s in systems.values() if "null_share" in s), None)
    kept = {"before", "after", next(iter(systems), "")}
    columns = [Column("metric", name=True)]
    columns += [
        Column(escape(name.replace("_", " ")), None if name in kept else i)
        for i, name in enumerate(systems, 1)
    ]
    if change:
        columns.append(Column(r"change \[95%]"))
    table = FittedTable(escape(title), columns, caption=windows_caption(shares))
    for key in keys:
        cells = ["–" if (value := system[key]) is None else f"{value:.3f}" for system in systems.values()]
        if change:
            cells.append(_change(**change[key]))
        table.add_row(plain_name(key), *cells)
    return table


def _change(estimate: float | None, low: float | None, high: float | None) -> str:
    """An interval as a cell, bold where it excludes 0; – where it is undefined."""
    if estimate is None or low is None or high is None:
        return "–"
    text = rf"{estimate:+.3f} \[{low:+.3f}, {high:+.3f}]"
    return f"[bold]{text}[/bold]" if low > 0 or high < 0 else text
