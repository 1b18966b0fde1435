"""Two runs against each other, dialogue by dialogue: does the second do better than chance would have it?

Every difference is second - first, with a bootstrap interval paired by dialogue
(`bootstrap.paired_difference`). Runs that played other dialogues, or the same ones labelled differently,
cannot be paired and are refused by the dialogue's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from proactor.console import NAMES, windows_caption
from proactor.dialogue import Dialogue
from proactor.engine import ProactorError
from proactor.evaluation.breakdown import KEYS as PARTS
from proactor.evaluation.breakdown import SHOWN, domain_contributions, tool_contributions, triple
from proactor.evaluation.play import Evaluation
from proactor.scoring.bootstrap import paired_difference
from proactor.scoring.metrics import ALL, Contribution, aggregate


class Change(BaseModel):
    """A metric of both runs, and second - first as (estimate, low, high) at 95%; None where undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float | None
    second: float | None
    difference: tuple[float, float, float] | None

    @property
    def clear(self) -> bool:
        """Does the interval exclude 0?"""
        return self.difference is not None and (self.difference[1] > 0 or self.difference[2] < 0)


class Paired(BaseModel):
    """Two runs: all metrics, and those of the breakdown by tool and by domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    dialogues: int
    null_share: float
    width_0_share: float
    metrics: dict[str, Change]
    tools: dict[str, dict[str, Change]]
    domains: dict[str, dict[str, Change]]


def paired(
    names: tuple[str, str],
    dialogues: tuple[Sequence[Dialogue], Sequence[Dialogue]],
    runs: tuple[Evaluation, Evaluation],
    *,
    resamples: int = 2000,
) -> Paired:
    """Compare `runs` (called `names`), each played on its `dialogues`. ValueError names a dialogue that they
    do not share.
    """
    same(names, dialogues)
    tools = [tool_contributions(dialogues[0], run) for run in runs]
    domains = [domain_contributions(dialogues[0], run) for run in runs]
    empty = [
        Contribution(d.id, dict.fromkeys(runs[0].contributions[0].sums, 0.0) | {"dialogues": 1.0})
        for d in dialogues[0]
    ]
    shares = runs[0].metrics
    return Paired(
        first=names[0],
        second=names[1],
        dialogues=len(dialogues[0]),
        null_share=shares["null_share"] or 0.0,
        width_0_share=shares["width_0_share"] or 0.0,
        metrics=changes(runs[0].contributions, runs[1].contributions, ALL, resamples),
        tools={
            tool: changes(tools[0].get(tool, empty), tools[1].get(tool, empty), PARTS, resamples)
            for tool in sorted(tools[0].keys() | tools[1].keys())
        },
        domains={
            name: changes(domains[0][name], domains[1][name], PARTS, resamples) for name in sorted(domains[0])
        },
    )


def same(names: tuple[str, str], dialogues: tuple[Sequence[Dialogue], Sequence[Dialogue]]) -> None:
    """ValueError unless both runs played the same dialogues, labels included."""
    first, second = ({d.id: d for d in of} for of in dialogues)
    if not first:
        raise ProactorError(f"{names[0]}: no dialogues")
    for dialogue in sorted(first.keys() ^ second.keys()):
        held, missing = names if dialogue in first else names[::-1]
        raise ProactorError(f"{missing}: dialogue {dialogue!r} was not played there, but in {held}")
    for name, dialogue_ in first.items():
        if dialogue_ != second[name]:
            raise ProactorError(
                f"{names[1]}: dialogue {name!r} is labelled or worded otherwise than in {names[0]}"
            )


def changes(
    first: Sequence[Contribution], second: Sequence[Contribution], keys: Sequence[str], resamples: int
) -> dict[str, Change]:
    """Both runs' metrics and their difference."""
    bounds = paired_difference([first], [second], keys, resamples=resamples)
    old, new = aggregate(first), aggregate(second)
    return {key: Change(first=old[key], second=new[key], difference=triple(bounds[key])) for key in keys}


def paired_tables(found: Paired, keys: Sequence[str]) -> list[Table]:
    """For a terminal: `keys` of all metrics, then tools and domains; bold where the interval excludes 0."""
    caption = windows_caption({"null_share": found.null_share, "width_0_share": found.width_0_share})
    whole = Table(
        "metric",
        title=f"{found.dialogues} dialogues",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for name in (found.first, found.second, "change [95%]".replace("[", r"\[")):
        whole.add_column(name, justify="right")
    for key in keys:
        change = found.metrics[key]
        whole.add_row(
            NAMES.get(key, key.replace("_", " ")),
            _number(change.first),
            _number(change.second),
            _told(change),
        )
    tables = [whole]
    for title, parts in (("by tool", found.tools), ("by domain", found.domains)):
        table = Table(
            title.removeprefix("by "),
            *(NAMES.get(k, k.replace("_", " ")) for k in SHOWN),
            title=f"change {title}",
            title_justify="left",
        )
        for name, of in parts.items():
            table.add_row(name, *(_told(of[key]) for key in SHOWN))
        tables.append(table)
    return tables


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _told(change: Change) -> str:
    if change.difference is None:
        return "–"
    estimate, low, high = change.difference
    text = rf"{estimate:+.3f} \[{low:+.3f}, {high:+.3f}]"
    return f"[bold]{text}[/bold]" if change.clear else text


def systems_named(named: Mapping[str, Evaluation], system: str, where: str) -> Evaluation:
    """One system of a run's evaluations. ValueError tells which there are."""
    if system not in named:
        raise ProactorError(f"{where}: no system {system!r}: one of {', '.join(named)}")
    return named[system]
