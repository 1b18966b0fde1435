"""``proactor doctor``: why a run does not learn, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from proactor.commands.common import console, run_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proactor.doctor.facts import Finding

WEIGHTS = {4: "stops", 3: "hinders", 2: "slows", 1: "note"}
"""How much a finding keeps a run from learning."""


def doctor(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="a run's folder, or the config it came from", show_default=False),
    ],
) -> None:
    """Name why a run does not learn, and which key of its config to change.

    Exit code 1 where anything is found.
    """
    from proactor.doctor.diagnosis import RULES, diagnose_folder

    folder = run_folder(run)
    findings = diagnose_folder(folder)
    if not findings:
        console.print(f"{folder}: healthy, by {len(RULES)} rules", markup=False, soft_wrap=True)
        return
    console.print(_table(findings))
    raise typer.Exit(1)


def point_to_doctor(folder: Path) -> None:
    """Print a line on the worst finding of a run that has ended, where there is one."""
    from proactor.doctor.diagnosis import diagnose_folder

    findings = diagnose_folder(folder)
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        console.print(
            f"doctor: {findings[0].name}{more}; proactor doctor {folder}", markup=False, soft_wrap=True
        )


def _table(findings: Sequence[Finding]) -> Table:
    shown = Table("", "finding", "evidence", "cause", "remedy", show_lines=True)
    for finding in findings:
        weight = Text(WEIGHTS[finding.weight], style="red" if finding.weight > 2 else "yellow")
        cells = (finding.name, finding.evidence, finding.cause, finding.remedy)
        shown.add_row(weight, *map(Text, cells))
    return shown
