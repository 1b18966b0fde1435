"""The record of `bench.gpu` and its tables for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import slug
from proactor.engine import atomic_file


class Report:
    """The record of a run and its file."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.record = record
        self.path = folder / slug(record["card"]["name"]) / f"{record['date']}-{record['commit']}.json"

    def save(self, **more: Any) -> None:
        """Add to the record and write it."""
        self.record.update(more)
        atomic_file(self.path, (json.dumps(self.record, indent=1) + "\n").encode())


def failures(record: dict[str, Any]) -> list[str]:
    """Everything that went wrong, one line each."""
    wrong = [f"{check['op']}: {line}" for check in record["correctness"] for line in check["failures"]]
    rows = [f"{row['name']}: {row['failed']}" for row in record["rows"] if "failed" in row]
    return [*wrong, *rows]


def unchecked(record: dict[str, Any]) -> list[str]:
    """Operations whose correctness is not known in full, one line each."""
    return [
        f"{c['op']}: {c['checks']} of {c['of']} checks done, {c['unchecked']}"
        for c in record["correctness"]
        if c.get("unchecked")
    ]


def row_table(record: dict[str, Any]) -> Table:
    """The operations' rows, in order."""
    headings = ("operation", "case", "model", "pass", "µs", "±", "of ceiling", "host µs")
    table = Table(*headings, "peers: their time over ours")
    for row in (row for row in record["rows"] if "op" in row):
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


def figure_table(record: dict[str, Any]) -> Table:
    """The figures with a target: steps, memory, gaps, tiles."""
    table = Table("figure", "value", "target", "value over target", "target: how it is computed")
    for row in (row for row in record["rows"] if "value" in row):
        unit, target = row["unit"], row["target"]
        share = f"{row['value'] / target:.2f}x" if target else ""
        name = f"{row['name']}: {row['sizes']}" if "sizes" in row else row["name"]
        table.add_row(name, f"{row['value']:.4g} {unit}", f"{target:.4g} {unit}", share, row["target_from"])
    return table


def profile_table(row: dict[str, Any]) -> Table:
    """Where the time of one call goes."""
    table = Table(row["name"], "count", "ms", "share")
    for line in row["profile"]:
        table.add_row(
            line["name"][:80], str(line["count"]), f"{line['seconds'] * 1e3:.2f}", f"{line['share']:.0%}"
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
    for row in record["rows"]:
        if "profile" in row:
            console.print(profile_table(row))
    for table in (row_table(record), figure_table(record)):
        if table.row_count:
            console.print(table)
    checks = sum(check["checks"] for check in record["correctness"])
    console.print(
        f"{record['card']['name']}: {checks} checks of {len(record['correctness'])} operations, "
        f"{len(record['rows'])} rows"
    )
    if record["ceilings"]:
        best = max(v["flop_per_second"] for v in record["ceilings"].values() if "flop_per_second" in v)
        copied = record["ceilings"]["copy"]["bytes_per_second"]
        console.print(f"ceilings: copy {copied / 1e12:.2f} TB/s, bf16 {best / 1e12:.0f} TFLOP/s")
    lines = [("skipped", f"{row['name']}: {row['skipped']}") for row in record["rows"] if "skipped" in row]
    lines += [("not run", name) for name in record["skipped"]]
    for what, line in lines:
        console.print(f"{what} {line}", markup=False, soft_wrap=True)
    for line in unchecked(record):
        console.print(f"UNCHECKED {line}", style="yellow", markup=False, soft_wrap=True)
    for line in failures(record):
        console.print(f"FAILED {line}", style="red", markup=False, soft_wrap=True)
    console.print(str(report.path), markup=False)
