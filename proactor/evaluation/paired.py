"""Two runs compared dialogue by dialogue.

Every difference is second - first, with a bootstrap interval paired by dialogue
(`bootstrap.paired_difference`). Runs on different dialogues, or with other labels, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.markup import escape

from proactor.dialogue import Dialogue
from proactor.engine import ProactorError
from proactor.evaluation.breakdown import KEYS as PARTS
from proactor.evaluation.breakdown import (
    SHOWN,
    domain_contributions,
    leaving_order,
    tool_contributions,
    triple,
)
from proactor.evaluation.play import Evaluation
from proactor.scoring.bootstrap import paired_difference
from proactor.scoring.metrics import ALL, Contribution, aggregate
from proactor.tables import Column, FittedTable, metric_digits, plain_name, windows_caption


class Change(BaseModel):
    """A metric of both runs, and second - first as (estimate, low, high) at 95%; None where undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float | None
    second: float | None
    difference: tuple[float, float, float] | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.difference is not None and (self.difference[1] > 0 or self.difference[2] < 0)


class PairedRuns(BaseModel):
    """The changes from one run to another: all metrics, and those of the breakdown by tool and by domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    dialogues: int
    null_share: float
    width_0_share: float
    metrics: dict[str, Change]
    tools: dict[str, dict[str, Change]]
    domains: dict[str, dict[str, Change]]


def compare_runs(
    names: tuple[str, str],
    dialogues: tuple[Sequence[Dialogue], Sequence[Dialogue]],
    runs: tuple[Evaluation, Evaluation],
    *,
    resamples: int = 2000,
) -> PairedRuns:
    """Compare ``runs`` called ``names``, each on its ``dialogues``. Raises as `require_same_dialogues`."""
    require_same_dialogues(names, dialogues)
    tools = [tool_contributions(dialogues[0], run) for run in runs]
    domains = [domain_contributions(dialogues[0], run) for run in runs]
    empty = [
        Contribution(d.id, dict.fromkeys(runs[0].contributions[0].sums, 0.0) | {"dialogues": 1.0})
        for d in dialogues[0]
    ]
    shares = runs[0].metrics
    return PairedRuns(
        first=names[0],
        second=names[1],
        dialogues=len(dialogues[0]),
        null_share=shares["null_share"] or 0.0,
        width_0_share=shares["width_0_share"] or 0.0,
        metrics=metric_changes(runs[0].contributions, runs[1].contributions, ALL, resamples),
        tools={
            tool: metric_changes(tools[0].get(tool, empty), tools[1].get(tool, empty), PARTS, resamples)
            for tool in sorted(tools[0].keys() | tools[1].keys())
        },
        domains={
            name: metric_changes(domains[0][name], domains[1][name], PARTS, resamples)
            for name in sorted(domains[0])
        },
    )


def require_same_dialogues(
    names: tuple[str, str], dialogues: tuple[Sequence[Dialogue], Sequence[Dialogue]]
) -> None:
    """Raise ProactorError, naming the dialogue, unless both runs played the same, with the same labels."""
    first, second = {d.id: d for d in dialogues[0]}, {d.id: d for d in dialogues[1]}
    if not first:
        raise ProactorError(f"{names[0]}: no dialogues")
    for dialogue in sorted(first.keys() ^ second.keys()):
        held, missing = names if dialogue in first else names[::-1]
        raise ProactorError(f"{missing}: dialogue {dialogue!r} was not played there, but in {held}")
    for name in first:
        if first[name] != second[name]:
            raise ProactorError(
                f"{names[1]}: dialogue {name!r} is labelled or worded otherwise than in {names[0]}"
            )


def metric_changes(
    first: Sequence[Contribution], second: Sequence[Contribution], keys: Sequence[str], resamples: int
) -> dict[str, Change]:
    """The metrics ``keys`` of both runs, with their differences."""
    bounds = paired_difference([first], [second], keys, resamples=resamples)
    old, new = aggregate(first), aggregate(second)
    return {key: Change(first=old[key], second=new[key], difference=triple(bounds[key])) for key in keys}


def paired_tables(runs: PairedRuns, keys: Sequence[str]) -> list[FittedTable]:
    """Tables for a terminal: the metrics ``keys``, tools, domains; bold where the interval excludes 0."""
    caption = windows_caption({"null_share": runs.null_share, "width_0_share": runs.width_0_share})
    columns = [Column("metric", name=True), *map(Column, (escape(runs.first), escape(runs.second)))]
    whole = FittedTable(f"{runs.dialogues} dialogues", [*columns, Column(r"change \[95%]")], caption=caption)
    for key in keys:
        change = runs.metrics[key]
        figures = (_format_metric(change.first), _format_metric(change.second), _format_change(change, 3))
        whole.add_row(plain_name(key), *figures)
    tables = [whole]
    for title, parts in (("by tool", runs.tools), ("by domain", runs.domains)):
        columns = [Column(title.removeprefix("by "), name=True)]
        columns += [Column(plain_name(key), leaving_order(key)) for key in SHOWN]
        table = FittedTable(f"change {title}", columns)
        for name, of in parts.items():
            table.add_row(escape(name), *(_format_change(of[key], metric_digits(key)) for key in SHOWN))
        tables.append(table)
    return tables


def _format_metric(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _format_change(change: Change, digits: int) -> str:
    if change.difference is None:
        return "–"
    estimate, low, high = (f"{value:+.{digits}f}" for value in change.difference)
    text = rf"{estimate} \[{low}, {high}]"
    return f"[bold]{text}[/bold]" if change.clear else text
