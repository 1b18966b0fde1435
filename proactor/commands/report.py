"""``proactor report`` and ``pool``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import console
from proactor.config_file import load_config
from proactor.console import metrics_table
from proactor.scoring.bootstrap import KEYS


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="a run's folder, or the config it came from", show_default=False),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="a second run, to show the two side by side", show_default=False
        ),
    ] = None,
) -> None:
    """Write runs/<name>/report.html again from what the folder holds, or one page that shows two runs side by
    side.
    """
    folder = _folder(run)
    if other is None:
        write(folder)
        return
    from proactor.report.page import side_by_side

    second = _folder(other)
    file = side_by_side(folder, second, folder / f"report-{second.resolve().name}.html")
    console.print(f"report: {file}", markup=False)


def _folder(run: Path) -> Path:
    return load_config(run).folder if run.is_file() else run


def pool(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs that differ by seed")],
) -> None:
    """Before and after over several seeds, with the paired bootstrap over dialogues pooled."""
    from proactor.training.summary import pooled

    found = pooled(runs)
    systems = {name: found[name] for name in ("before", "after")}
    console.print(metrics_table(f"{found['runs']} runs", systems, KEYS, found["difference"]))
    console.print(json.dumps(found), soft_wrap=True, markup=False)


def write(folder: Path) -> None:
    """Write a run's report and say where it is."""
    from proactor.report.page import rebuild_report

    file = rebuild_report(folder)
    console.print(f"report: {file}", markup=False)
