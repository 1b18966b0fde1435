"""``proactor profile``, and ``proactor --profile DIR`` before any command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from proactor.commands.common import Overrides, UsageError, console
from proactor.output import complain

if TYPE_CHECKING:
    from proactor.engine import Ceilings, StepProfile

SHOWN = 12
"""Operations of a trace that are printed; its file holds more."""


class What(StrEnum):
    """What `proactor profile` takes apart."""

    kernels = "kernels"
    decode = "decode"
    step = "step"


def profile(
    what: Annotated[What, typer.Argument(help="what to time", show_default=False)],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="a folder; of kernels also a name like qwen2.5-14b", show_default=False
        ),
    ],
    overrides: Overrides = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="of decode: sequences  \\[1 8 32]")] = None,
    context: Annotated[int, typer.Option(min=1, help="of decode and step: tokens of a prompt")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="of decode and step: tokens of a sample")] = 32,
    prompts: Annotated[int, typer.Option(min=1, help="of step")] = 4,
    samples: Annotated[int, typer.Option(min=2, help="of step: of each prompt")] = 8,
    only: Annotated[str, typer.Option(help="of kernels: operations whose name contains this")] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write the numbers as JSON")] = None,
) -> None:
    """Each kernel, or each phase of a decode or GRPO step, beside what this machine could do at best.

    The floor is the least bytes over the copy rate, or the least operations over the product rate, both
    measured in the same run. KEY=VALUE sets options of the engine (dtype=bfloat16).
    """
    from proactor.engine import EngineConfig, load_to_profile, profile_decode, profile_kernels, profile_step

    if bare := [item for item in overrides or () if "=" not in item]:
        raise UsageError(f"{bare[0]!r}: options of the engine are written KEY=VALUE")
    options = EngineConfig.from_options(dict(item.split("=", 1) for item in overrides or ()))
    if what is What.kernels:
        ceilings, found = profile_kernels(model, options, only)
        rows = list(found)
        _show_kernels(ceilings, rows)
        _write(out, {"ceilings": asdict(ceilings), "operations": [asdict(row) for row in rows]})
        return
    engine = load_to_profile(model, options)
    if what is What.step:
        steps = [profile_step(engine, prompts, samples, context, tokens)]
    else:
        steps = [profile_decode(engine, count, context, tokens) for count in batch or (1, 8, 32)]
    for step in steps:
        _show(step)
    _write(out, {"steps": [asdict(step) for step in steps]})


def _write(out: Path | None, record: dict[str, Any]) -> None:
    if out is None:
        return
    from proactor.engine import atomic_file
    from proactor.training.origin import processor

    atomic_file(out, (json.dumps({"machine": processor(), **record}, indent=2) + "\n").encode())


def _show(found: StepProfile) -> None:
    title = f"{found.title}: {1e3 * found.seconds:.1f} ms; {_rates(found.ceilings)}"
    table = Table(title=escape(title))
    table.add_column("phase")
    for column in ("ms", "share", "floor, ms", "of floor", "bound by"):
        table.add_column(column, justify="right")
    for phase in found.phases:
        floor = (
            (f"{1e3 * phase.floor:.2f}", f"{phase.floor / phase.seconds:.0%}") if phase.bound else ("", "")
        )
        table.add_row(
            phase.name, f"{1e3 * phase.seconds:.2f}", f"{phase.share:.0%}", *floor, phase.bound or "–"
        )
    console.print(table)


def _show_kernels(ceilings: Ceilings, rows: Any) -> None:
    table = Table(title=escape(_rates(ceilings)))
    for column in ("operation", "case"):
        table.add_column(column)
    for column in ("ms", "floor, ms", "of floor", "bound by", "GB/s", "GFLOP/s"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.left_out:
            table.add_row(row.name, row.case, "–", "", "", f"left out: {row.left_out}", "", "")
            continue
        table.add_row(
            row.name,
            row.case,
            f"{1e3 * row.seconds:.3g}",
            f"{1e3 * row.floor:.3g}",
            f"{row.share:.0%}",
            row.bound,
            f"{1e-9 * row.bytes / row.seconds:.1f}",
            f"{1e-9 * row.flops / row.seconds:.1f}",
        )
    console.print(table)


def _rates(ceilings: Ceilings) -> str:
    copied, product = 1e-9 * ceilings.copy, 1e-9 * ceilings.product
    return f"this machine copies {copied:.1f} GB/s, multiplies {product:.0f} GFLOP/s"


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Profile what runs inside, and say on standard error where its time went."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "3")  # read with torch; else it tells when it starts and stops
    from proactor.profiling import Profile

    with Profile(folder) as found:
        yield
    for line in _told(found.record()):
        complain(line)
    complain(f"profile: {folder}/trace.json (open it in ui.perfetto.dev), ranges.json, memory.json")


def _told(record: dict[str, Any]) -> Iterator[str]:
    wall = record["wall"] or 1.0
    yield f"{'range':<28} {'count':>8} {'seconds':>9} {'own':>9} {'of all':>7}"
    for name, row in record["ranges"].items():
        seconds, own = row["seconds"], row["own"]
        yield f"{name:<28} {row['count']:>8,} {seconds:>9.2f} {own:>9.2f} {own / wall:>7.0%}"
    if record["operations"]:
        yield f"{'operation, first seconds':<28} {'count':>8} {'own':>9}"
    for row in record["operations"][:SHOWN]:
        yield f"{row['name'][:28]:<28} {row['count']:>8,} {row['own']:>9.3f}"
