"""The table of `bench.rewards`, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import decimal
from proactor.tables import plain_name

SHOWN = ("reward", "first_fire_f1", "on_time_f1", "recall", "precision", "pt", "ftr", "ac")
"""Metrics in the table; the record has all of `bootstrap.KEYS`."""


def show(name: str, result: Mapping[str, Any]) -> None:
    """Print the table of one config."""
    title = f"{name}: {result['updates']} updates, {result['dialogues']} test dialogues"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("seeds", justify="right")
    for key in SHOWN:
        table.add_column(plain_name(key), justify="right")
    for heading in ("F1 over start [95%]", "F1 over RAC [95%]", "s a run", "dropped"):
        table.add_column(heading, justify="right")
    for system, metrics in result["systems"].items():
        table.add_row(system.replace("_", " "), "", *_metric_cells(metrics), "", "", "", "")
    for reward, row in result["rewards"].items():
        seconds, dropped = f"{row['seconds']:.0f}", f"{row['groups_dropped']:.0f}"
        table.add_row(
            reward, str(row["runs"]), *_metric_cells(row["after"]), *_f1_cells(row), seconds, dropped
        )
        for part, values in row["parts"].items():
            label = f"  {part.replace('_', ' ')} ({values['dialogues']})"
            table.add_row(label, "", *_metric_cells(values["after"]), *_f1_cells(values), "", "")
    Console(width=220).print(table)
    _show_tools(result)


def _show_tools(result: Mapping[str, Any]) -> None:
    """Print how often each tool was fired, and rightly, in the test part; nothing without unseen ones."""
    for reward, row in result["rewards"].items():
        for tool, counts in row["tools"].items():
            told = "; ".join(
                f"{side} {counts[side]['right']:.1f} right of {counts[side]['fires']:.1f}"
                for side in ("before", "after")
            )
            print(f"{reward}, {tool}: {counts['references']:.0f} wanted; {told}")


def _metric_cells(metrics: Mapping[str, float | None]) -> list[str]:
    return [decimal(metrics[key]) for key in SHOWN]


def _f1_cells(values: Mapping[str, Any]) -> list[str]:
    """First-fire F1 over the start and over RAC, with intervals."""
    cells = []
    for intervals in (values["difference"], values["over_rac"]):
        f1 = intervals.get("first_fire_f1")
        cells.append(
            rf"{f1['estimate']:+.3f} \[{f1['low']:+.3f}, {f1['high']:+.3f}]" if f1 is not None else ""
        )
    return cells
