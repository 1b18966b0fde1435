"""Where an agent is good and where it is not: its metrics by tool, by domain, and how far from the window it
fires.

Matching compares names first (methods 1.5), so a dialogue cut down to one tool's references and one tool's
proposals is scored exactly as that tool is within the whole: the sums of all tools add up to the dialogue's.
All intervals draw whole dialogues (bootstrap.py), and a dialogue in which a tool does not occur counts as
zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from proactor.console import NAMES
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import THETA, Judged, Timing, first_fires
from proactor.engine import ProactorError
from proactor.evaluation.play import Evaluation
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import Interval, bootstrap_sums
from proactor.scoring.metrics import FIELDS, Contribution, matrix, metrics_of, score_dialogue

Outputs = Mapping[int, Sequence[Action]]

KEYS = (
    "first_fire_f1",
    "on_time_f1",
    "first_fire_precision",
    "first_fire_recall",
    "lead",
    "turns_saved",
    "false_per_100",
    "ac",
)
"""The metrics of a breakdown."""

NOT_OFFERED = "(not offered)"
"""The line of proposals that name no tool on offer; where a dialogue does not say what is on offer, none that
any dialogue calls for.
"""

DISTANCES = (
    "5 or more before",
    "3 to 4 before",
    "1 to 2 before",
    "inside",
    "1 to 2 after",
    "3 to 4 after",
    "5 or more after",
    "repeat",
    "unmatched",
)
"""First fires by their distance in turns to the ready window, then those that have none: repeats, and fires
that match nothing.
"""


class Line(BaseModel):
    """One row: how much there is of it, and its metrics as (estimate, low, high) at 95%; None where a metric
    is undefined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dialogues: int
    references: int
    fires: int
    null_share: float
    width_0_share: float
    metrics: dict[str, tuple[float, float, float] | None]


class Distance(BaseModel):
    """How many first fires lie at one distance to the window, and their share of all as (estimate, low, high)
    at 95%.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fires: int
    share: tuple[float, float, float] | None


class Breakdown(BaseModel):
    """An evaluation taken apart. `tools` are sorted by how often they are called for, `domains` by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[Line, ...]
    domains: tuple[Line, ...]
    distances: tuple[Distance, ...]


def breakdown(
    dialogues: Sequence[Dialogue],
    evaluation: Evaluation,
    *,
    resamples: int = 2000,
    keys: Sequence[str] = KEYS,
) -> Breakdown:
    """Take `evaluation` of `dialogues` apart; both may be in any order. ValueError names a dialogue that has
    no replay.
    """
    by_tool, by_domain = (
        tool_contributions(dialogues, evaluation),
        domain_contributions(dialogues, evaluation),
    )
    tools = [_line(name, rows, resamples, keys) for name, rows in by_tool.items()]
    domains = [_line(name, rows, resamples, keys) for name, rows in sorted(by_domain.items())]
    return Breakdown(
        tools=tuple(sorted(tools, key=lambda line: (-line.references, line.name))),
        domains=tuple(domains),
        distances=_distances(dialogues, outputs_of(evaluation, dialogues), resamples),
    )


def outputs_of(evaluation: Evaluation, dialogues: Iterable[Dialogue]) -> dict[str, Outputs]:
    """Dialogue id -> what was proposed. ValueError names a dialogue without a replay."""
    played: dict[str, Outputs] = {r.dialogue_id: r.actions for r in evaluation.replays}
    for dialogue in dialogues:
        if dialogue.id not in played:
            raise ProactorError(f"breakdown: dialogue {dialogue.id!r} was not played")
    return played


def restricted(dialogue: Dialogue, tool: str) -> Dialogue:
    """The dialogue as if it called for this tool only."""
    return dialogue.model_copy(
        update={
            "references": tuple(r for r in dialogue.references if r.name == tool),
            "withdrawn": tuple(r for r in dialogue.withdrawn if r.name == tool),
        }
    )


def tools_in(dialogue: Dialogue, outputs: Outputs) -> list[str]:
    """Names called for, withdrawn or proposed in the dialogue, sorted."""
    names = {r.name for r in (*dialogue.references, *dialogue.withdrawn)}
    return sorted(names | {a.name for actions in outputs.values() for a in actions})


def score_tool(dialogue: Dialogue, outputs: Outputs, tool: str, theta: float = THETA) -> Contribution:
    """What the proposals of one tool add to the metrics of that tool."""
    own = {turn: [a for a in actions if a.name == tool] for turn, actions in outputs.items()}
    return score_dialogue(restricted(dialogue, tool), own, theta=theta)


def tool_contributions(
    dialogues: Sequence[Dialogue], evaluation: Evaluation
) -> dict[str, list[Contribution]]:
    """Tool -> one contribution for every dialogue, in the order of `dialogues`; the dialogues where a tool
    does not occur hold zeros.
    """
    played = outputs_of(evaluation, dialogues)
    called = {r.name for d in dialogues for r in (*d.references, *d.withdrawn)}
    found: dict[str, dict[str, Array]] = {}
    for dialogue in dialogues:
        for tool in tools_in(dialogue, played[dialogue.id]):
            line = tool if tool in (dialogue.tools or called) else NOT_OFFERED
            row = matrix([score_tool(dialogue, played[dialogue.id], tool)])[0]
            rows = found.setdefault(line, {})
            rows[dialogue.id] = rows.get(dialogue.id, np.zeros(len(FIELDS))) + row
    nothing = np.zeros(len(FIELDS))
    nothing[FIELDS.index("dialogues")] = 1.0
    for rows in found.values():
        for row in rows.values():
            row[FIELDS.index("dialogues")] = 1.0
    return {
        tool: [Contribution(d.id, dict(zip(FIELDS, map(float, rows.get(d.id, nothing))))) for d in dialogues]
        for tool, rows in found.items()
    }


def domain_contributions(
    dialogues: Sequence[Dialogue], evaluation: Evaluation
) -> dict[str, list[Contribution]]:
    """Domain -> the contributions of its dialogues."""
    domain = {d.id: d.domain or "(none)" for d in dialogues}
    found: dict[str, list[Contribution]] = {}
    for contribution in evaluation.contributions:
        if contribution.dialogue in domain:
            found.setdefault(domain[contribution.dialogue], []).append(contribution)
    return found


def distance(judged: Judged, turn: int) -> str:
    """Which of DISTANCES a fire at `turn` falls into."""
    if judged.timing is Timing.REPEAT:
        return "repeat"
    if judged.timing is Timing.FALSE or judged.reference is None or judged.reference.ready is None:
        return "unmatched"
    first, last = judged.reference.ready
    if first <= turn <= last:
        return "inside"
    gap = first - turn if turn < first else turn - last
    return f"{'1 to 2' if gap <= 2 else '3 to 4' if gap <= 4 else '5 or more'} {'before' if turn < first else 'after'}"


def _distances(
    dialogues: Sequence[Dialogue], played: Mapping[str, Outputs], resamples: int, theta: float = THETA
) -> tuple[Distance, ...]:
    counts = np.zeros((len(dialogues), len(DISTANCES)))
    for i, dialogue in enumerate(dialogues):
        for turn, fire in first_fires(dialogue, played[dialogue.id], theta):
            counts[i, DISTANCES.index(distance(fire, turn))] += 1
    if not counts.sum():
        return tuple(Distance(name=name, fires=0, share=None) for name in DISTANCES)

    def shares(sums: Array) -> dict[str, Array]:
        every = sums.sum(axis=-1)
        return {
            name: np.divide(sums[..., k], every, out=np.full_like(every, np.nan), where=every > 0)
            for k, name in enumerate(DISTANCES)
        }

    bounds = bootstrap_sums(counts, shares, DISTANCES, resamples=resamples)
    return tuple(
        Distance(name=name, fires=int(counts[:, k].sum()), share=triple(bounds[name]))
        for k, name in enumerate(DISTANCES)
    )


def triple(interval: Interval) -> tuple[float, float, float] | None:
    """(estimate, low, high), None when undefined."""
    values = (interval.estimate, interval.low, interval.high)
    return None if np.isnan(values).any() else values


def _line(name: str, rows: Sequence[Contribution], resamples: int, keys: Sequence[str]) -> Line:
    sums = matrix(rows)
    count: Counter[str] = Counter(dict(zip(FIELDS, map(int, sums.sum(axis=0)))))
    shares = metrics_of(sums.sum(axis=0))
    bounds = bootstrap_sums(sums, metrics_of, keys, resamples=resamples)
    occurs = sums[
        :, [FIELDS.index(f) for f in ("references", "null_references", "actions", "null_masked")]
    ].any(axis=1)
    return Line(
        name=name,
        dialogues=int(occurs.sum()),
        references=count["references"] + count["null_references"],
        fires=count["first_fires"],
        null_share=float(shares["null_share"]),
        width_0_share=float(shares["width_0_share"]),
        metrics={key: triple(bounds[key]) for key in keys},
    )


SHOWN = ("first_fire_f1", "on_time_f1", "turns_saved", "false_per_100")
"""The metrics of a table."""


def breakdown_tables(found: Breakdown, keys: Sequence[str] = SHOWN, most: int = 20) -> list[Table]:
    """Tables for a terminal: tools (the `most` called for), domains, distances. Each cell: estimate and its
    95% interval.
    """
    tables = []
    for title, lines in (("by tool", found.tools), ("by domain", found.domains)):
        cut = lines is found.tools and len(lines) > most
        shown = lines[:most] if cut else lines
        left = f" (the {most} most called for of {len(lines)})" if cut else ""
        table = Table(title=title + left, title_justify="left")
        table.add_column(title.removeprefix("by "), no_wrap=True)
        for name in ("dialogues", "refs", "fires", "unknown", "width 0", *keys):
            table.add_column(NAMES.get(name, name.replace("_", " ")), justify="right")
        for line in shown:
            counts = (line.dialogues, line.references, line.fires)
            shares = (f"{line.null_share:.0%}", f"{line.width_0_share:.0%}")
            table.add_row(line.name, *map(str, counts), *shares, *(_cell(line.metrics.get(k)) for k in keys))
        tables.append(table)
    table = Table(
        "first fires, turns to the window", "fires", "share", title="by distance", title_justify="left"
    )
    for row in found.distances:
        table.add_row(row.name, str(row.fires), _cell(row.share, " "))
    return [*tables, table]


def _cell(value: Any, between: str = "\n") -> str:
    return "–" if value is None else rf"{value[0]:.2f}{between}\[{value[1]:.2f}, {value[2]:.2f}]"
