"""``proactor report`` and ``pool``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import UsageError, all_in_environment, console, run_folder


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="a run's folder, or the config it came from; or the log of an agent (decisions.jsonl)",
            show_default=False,
        ),
    ],
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="another run, to show the two side by side; in an environment any number",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run's report.html again from its files, or one page with several runs side by side; of an
    agent's log, a page beside it.
    """
    if run.suffix == ".jsonl" and run.is_file():
        if others:
            raise UsageError(f"{run}: the log of an agent; its page shows nothing else")
        from proactor.report.agent_page import write_agent_report

        _print_line(f"report: {write_agent_report(run)}")
        return
    folders = [run_folder(run), *map(run_folder, others or ())]
    if len(folders) == 1:
        write_report(folders[0])
        return
    from proactor.report.folders import together
    from proactor.sole_writer import sole_writer

    all_in_environment(folders)  # refuses a mixture
    names = "-".join(folder.resolve().name for folder in folders[1:])
    with sole_writer(folders[0]):
        file = together(folders, folders[0] / f"report-{names}.html", say=_print_line)
    console.print(f"report: {file}", markup=False)


def pool(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs that differ by seed")],
) -> None:
    """Pool runs of several seeds: before and after, with a paired bootstrap over dialogues."""
    folders = [run_folder(run) for run in runs]
    if all_in_environment(folders):
        raise UsageError(f"{folders[0]}: a run in an environment; pool takes runs on dialogues")
    from proactor.scoring.bootstrap import KEYS
    from proactor.tables import metrics_table
    from proactor.training.summary import pool_runs

    result = pool_runs(folders)
    systems = {name: result[name] for name in ("before", "after")}
    console.print(metrics_table(f"{result['runs']} runs", systems, KEYS, result["difference"]))
    for note in result.get("notes", ()):
        _print_line(note)
    console.print(json.dumps(result), soft_wrap=True, markup=False)


def write_report(folder: Path) -> None:
    """Write a run's report and print its path."""
    from proactor.report.folders import rebuild_report
    from proactor.sole_writer import sole_writer

    with sole_writer(folder):
        file = rebuild_report(folder, say=_print_line)
    console.print(f"report: {file}", markup=False)


def _print_line(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
