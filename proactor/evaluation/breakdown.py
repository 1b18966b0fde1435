"""An evaluation by tool, by domain, and by the distance of its fires to the window.

Matching compares names first (methods 1.5), so a dialogue restricted to one tool is scored exactly as that
tool is within the whole: the sums of all tools add up to the dialogue's. All intervals resample whole
dialogues (bootstrap.py); a dialogue in which a tool does not occur counts as zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.markup import escape

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import EXACT, ClassifiedAction, MatchRule, Timing, first_fires
from proactor.engine import ProactorError
from proactor.evaluation.play import Evaluation
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import Interval, bootstrap_sums
from proactor.scoring.metrics import FIELDS, Contribution, matrix, metrics_of, score_dialogue
from proactor.tables import Column, FittedTable, metric_digits, plain_name

ActionsByTurn = Mapping[int, Sequence[Action]]
"""What was proposed at each decision turn."""

KEYS = (
    "values_right",
    "first_fire_f1",
    "on_time_f1",
    "first_fire_precision",
    "first_fire_recall",
    "lead",
    "turns_saved",
    "false_per_100",
    "similarity_first_fire_f1",
    "ac",
)
"""The metrics of a breakdown."""

NOT_OFFERED = "(not offered)"
"""The line of proposals for tools that are not on offer. Where a dialogue does not list its tools, these are
the tools that no dialogue calls for.
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
    "wrong values",
    "unmatched",
)
"""Distances of a first fire to the ready window in turns; repeats and fires without a match have none.

wrong values: a match by similarity whose required values are not all right.
"""


class BreakdownLine(BaseModel):
    """One row: its counts, and its metrics as (estimate, low, high) at 95%, None where undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dialogues: int
    references: int
    fires: int
    null_share: float
    width_0_share: float
    metrics: dict[str, tuple[float, float, float] | None]


class Distance(BaseModel):
    """First fires at one distance: their number, and their share as (estimate, low, high) at 95%."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fires: int
    share: tuple[float, float, float] | None


class Breakdown(BaseModel):
    """The parts of an evaluation. ``tools``: the most references first. ``domains``: by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[BreakdownLine, ...]
    domains: tuple[BreakdownLine, ...]
    distances: tuple[Distance, ...]


def breakdown(
    dialogues: Sequence[Dialogue],
    evaluation: Evaluation,
    *,
    resamples: int = 2000,
    keys: Sequence[str] = KEYS,
) -> Breakdown:
    """The breakdown of ``evaluation`` on ``dialogues``, which may be in any order.

    Raises ProactorError for a dialogue without a replay.
    """
    by_tool = tool_contributions(dialogues, evaluation)
    by_domain = domain_contributions(dialogues, evaluation)
    tools = [_line(name, rows, resamples, keys) for name, rows in by_tool.items()]
    domains = [_line(name, rows, resamples, keys) for name, rows in sorted(by_domain.items())]
    return Breakdown(
        tools=tuple(sorted(tools, key=lambda line: (-line.references, line.name))),
        domains=tuple(domains),
        distances=_distances(dialogues, outputs_of(evaluation, dialogues), resamples, evaluation.rule),
    )


def outputs_of(evaluation: Evaluation, dialogues: Iterable[Dialogue]) -> dict[str, ActionsByTurn]:
    """What was proposed, by dialogue id. Raises ProactorError for a dialogue without a replay."""
    played: dict[str, ActionsByTurn] = {r.dialogue_id: r.actions for r in evaluation.replays}
    for dialogue in dialogues:
        if dialogue.id not in played:
            raise ProactorError(f"breakdown: dialogue {dialogue.id!r} was not played")
    return played


def restrict_to_tool(dialogue: Dialogue, tool: str) -> Dialogue:
    """The dialogue with the references of one tool only."""
    return dialogue.model_copy(
        update={
            "references": tuple(r for r in dialogue.references if r.name == tool),
            "withdrawn": tuple(r for r in dialogue.withdrawn if r.name == tool),
        }
    )


def tools_in(dialogue: Dialogue, outputs: ActionsByTurn) -> list[str]:
    """Names of the tools in references, withdrawn or proposed, sorted."""
    names = {r.name for r in (*dialogue.references, *dialogue.withdrawn)}
    return sorted(names | {a.name for actions in outputs.values() for a in actions})


def score_tool(
    dialogue: Dialogue, outputs: ActionsByTurn, tool: str, rule: MatchRule = EXACT
) -> Contribution:
    """What one dialogue adds to the metrics of one tool."""
    of_tool = {turn: [a for a in actions if a.name == tool] for turn, actions in outputs.items()}
    return score_dialogue(restrict_to_tool(dialogue, tool), of_tool, rule=rule)


def tool_contributions(
    dialogues: Sequence[Dialogue], evaluation: Evaluation
) -> dict[str, list[Contribution]]:
    """For each tool one contribution per dialogue, in their order; zeros where the tool does not occur."""
    played = outputs_of(evaluation, dialogues)
    called = {r.name for d in dialogues for r in (*d.references, *d.withdrawn)}
    rows_by_tool: dict[str, dict[str, Array]] = {}
    for dialogue in dialogues:
        for tool in tools_in(dialogue, played[dialogue.id]):
            line = tool if tool in (dialogue.tools or called) else NOT_OFFERED
            row = matrix([score_tool(dialogue, played[dialogue.id], tool, evaluation.rule)])[0]
            rows = rows_by_tool.setdefault(line, {})
            rows[dialogue.id] = rows.get(dialogue.id, np.zeros(len(FIELDS))) + row
    nothing = np.zeros(len(FIELDS))
    nothing[FIELDS.index("dialogues")] = 1.0
    for rows in rows_by_tool.values():
        for row in rows.values():
            row[FIELDS.index("dialogues")] = 1.0
    return {
        tool: [Contribution(d.id, dict(zip(FIELDS, map(float, rows.get(d.id, nothing))))) for d in dialogues]
        for tool, rows in rows_by_tool.items()
    }


def domain_contributions(
    dialogues: Sequence[Dialogue], evaluation: Evaluation
) -> dict[str, list[Contribution]]:
    """For each domain the contributions of its dialogues."""
    domain = {d.id: d.domain or "(none)" for d in dialogues}
    by_domain: dict[str, list[Contribution]] = {}
    for contribution in evaluation.contributions:
        if contribution.dialogue in domain:
            by_domain.setdefault(domain[contribution.dialogue], []).append(contribution)
    return by_domain


def distance(fire: ClassifiedAction, turn: int) -> str:
    """The entry of DISTANCES for a fire at ``turn``."""
    if fire.timing is Timing.REPEAT:
        return "repeat"
    if fire.timing is Timing.FALSE or fire.reference is None or fire.reference.ready is None:
        return "unmatched" if fire.meant is None else "wrong values"
    first, last = fire.reference.ready
    if first <= turn <= last:
        return "inside"
    gap = first - turn if turn < first else turn - last
    side = "before" if turn < first else "after"
    if gap <= 2:
        return f"1 to 2 {side}"
    return f"3 to 4 {side}" if gap <= 4 else f"5 or more {side}"


def _distances(
    dialogues: Sequence[Dialogue], played: Mapping[str, ActionsByTurn], resamples: int, rule: MatchRule
) -> tuple[Distance, ...]:
    counts = np.zeros((len(dialogues), len(DISTANCES)))
    for i, dialogue in enumerate(dialogues):
        for turn, fire in first_fires(dialogue, played[dialogue.id], rule):
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
    """(estimate, low, high); None where undefined."""
    values = (interval.estimate, interval.low, interval.high)
    return None if np.isnan(values).any() else values


def _line(name: str, rows: Sequence[Contribution], resamples: int, keys: Sequence[str]) -> BreakdownLine:
    sums = matrix(rows)
    count: Counter[str] = Counter(dict(zip(FIELDS, map(int, sums.sum(axis=0)))))
    shares = metrics_of(sums.sum(axis=0))
    bounds = bootstrap_sums(sums, metrics_of, keys, resamples=resamples)
    occurs = sums[
        :, [FIELDS.index(f) for f in ("references", "null_references", "actions", "null_masked")]
    ].any(axis=1)
    return BreakdownLine(
        name=name,
        dialogues=int(occurs.sum()),
        references=count["references"] + count["null_references"],
        fires=count["first_fires"],
        null_share=float(shares["null_share"]),
        width_0_share=float(shares["width_0_share"]),
        metrics={key: triple(bounds[key]) for key in keys},
    )


SHOWN = ("values_right", "first_fire_f1", "on_time_f1", "turns_saved", "false_per_100")
"""The metrics of a table in a terminal."""

LEAVING = ("turns_saved", "values_right", "on_time_f1", "dialogues", "unknown", "width 0")
"""Columns that a narrow terminal does without, the last first."""


def breakdown_tables(parts: Breakdown, keys: Sequence[str] = SHOWN, most: int = 20) -> list[FittedTable]:
    """Tables for a terminal: tools (at most ``most``), domains, distances; estimates with 95% intervals."""
    tables = []
    for title, lines in (("by tool", parts.tools), ("by domain", parts.domains)):
        cut = lines is parts.tools and len(lines) > most
        shown = lines[:most] if cut else lines
        left = f" (the {most} most called for of {len(lines)})" if cut else ""
        columns = [Column(title.removeprefix("by "), name=True)]
        columns += [
            Column(plain_name(key), leaving_order(key))
            for key in ("dialogues", "refs", "fires", "unknown", "width 0", *keys)
        ]
        table = FittedTable(title + left, columns)
        for line in shown:
            counts = (line.dialogues, line.references, line.fires)
            shares = (f"{line.null_share:.0%}", f"{line.width_0_share:.0%}")
            metrics = (_cell(line.metrics.get(k), metric_digits(k)) for k in keys)
            table.add_row(escape(line.name), *map(str, counts), *shares, *metrics)
        tables.append(table)
    columns = [Column("first fires, turns to the window", name=True), Column("fires"), Column("share")]
    table = FittedTable("by distance", columns)
    for row in parts.distances:
        table.add_row(row.name, str(row.fires), _cell(row.share))
    return [*tables, table]


def leaving_order(key: str) -> int | None:
    """`Column.drop` of a column in a table by tool or domain."""
    return LEAVING.index(key) if key in LEAVING else None


def _cell(value: Any, digits: int = 2) -> str:
    if value is None:
        return "–"
    return rf"{value[0]:.{digits}f} \[{value[1]:.{digits}f}, {value[2]:.{digits}f}]"
