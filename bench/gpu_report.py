"""The record of `bench.gpu` and its table for people."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import slug
from proactor.engine import atomic_file


class Report:
    """The record of a run and its file. The run's timer thread may save too."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.record = record
        self.path = folder / slug(record["card"]["name"]) / f"{record['date']}-{record['commit']}.json"
        self._lock = threading.Lock()

    def save(self, **more: Any) -> None:
        """Add to the record and write it."""
        with self._lock:
            self.record.update(more)
            atomic_file(self.path, (json.dumps(self.record, indent=1) + "\n").encode())


def failures(record: dict[str, Any]) -> list[str]:
    """Everything that went wrong, one line each."""
    wrong = [f"{check['op']}: {line}" for check in record["correctness"] for line in check["failures"]]
    rows = [
        f"{row['op']} {row['case']} ({row['model']}, {row['pass']}): {row['failed']}"
        for row in record["rows"]
        if "failed" in row
    ]
    return [*wrong, *rows, *([record["stopped"]] if "stopped" in record else [])]


def row_table(record: dict[str, Any]) -> Table:
    """The rows of the record, in order."""
    headings = ("operation", "case", "model", "pass", "µs", "±", "of ceiling", "host µs")
    table = Table(*headings, "peers: their time over ours")
    for row in record["rows"]:
        model = row["model"].removeprefix("Qwen2.5-")
        name = (row["op"], row["case"], model, "fwd" if row["pass"] == "forward" else "fwd+bwd")
        if "failed" in row:
            table.add_row(*name, "[red]FAILED[/red]", "", "", "", row["failed"].replace("[", r"\["))
            continue
        spread = (row["high"] - row["low"]) / row["median"]
        table.add_row(
            *name,
            f"{row['median'] * 1e6:.1f}",
            f"{spread:.0%}",
            f"{row['share']:.0%} {row['bound']}" if "share" in row else "",
            f"{row['host'] * 1e6:.0f}",
            "; ".join(map(_peer_cell, row["peers"])),
        )
    return table


def _peer_cell(peer: dict[str, Any]) -> str:
    if "speedup" in peer:
        return f"{peer['name']} {peer['speedup']:.2f}x"
    return f"[dim]{peer['name']}: {peer['skipped']}[/dim]"


def print_report(report: Report) -> None:
    """Print the rows, the counts, the ceilings, every failure, and the path of the record."""
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    record = report.record
    if record["rows"]:
        console.print(row_table(record))
    checks = sum(check["checks"] for check in record["correctness"])
    console.print(
        f"{record['card']['name']}: {checks} checks of {len(record['correctness'])} operations, "
        f"{len(record['rows'])} rows"
    )
    if record["ceilings"]:
        best = max(v["flop_per_second"] for v in record["ceilings"].values() if "flop_per_second" in v)
        copied = record["ceilings"]["copy"]["bytes_per_second"]
        console.print(f"ceilings: copy {copied / 1e12:.2f} TB/s, bf16 {best / 1e12:.0f} TFLOP/s")
    for line in failures(record):
        console.print(f"FAILED {line}", style="red", markup=False, soft_wrap=True)
    console.print(str(report.path), markup=False)
