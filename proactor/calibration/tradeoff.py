"""Lead against false fires: the curve of a system over its thresholds, beside systems of a single point.

`proactor.calibration.points` defines the figures of a point.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter
from rich.box import SIMPLE_HEAD

from proactor.calibration.points import Outputs, TradeOffPoint, known_references, point, point_of_sums
from proactor.calibration.score_table import ScoreTable
from proactor.calibration.thresholds import (
    BUDGET,
    NEVER,
    Thresholds,
    choose,
    choose_common,
    steps,
    wrong_fire_limit,
)
from proactor.dialogue import Dialogue
from proactor.dialogue.matching import EXACT, MatchRule
from proactor.dialogue.windows import width
from proactor.engine import ProactorError, atomic_file
from proactor.evaluation.policies import POLICIES, human, logs_triggers
from proactor.files import read_validated
from proactor.tables import Column, FittedTable, windows_caption

MOST = 200
"""Points of a curve that are kept."""


class TradeOff(BaseModel):
    """A system's points, by falling threshold.

    ``human``: the logged agent on the same dialogues. ``chosen``: the point at the threshold that saves most
    turns within the budget on the part ``chosen_on``; on other dialogues it may exceed the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    points: tuple[TradeOffPoint, ...]
    human: TradeOffPoint | None = None
    chosen: TradeOffPoint | None = None
    chosen_on: str = ""


class TradeOffs(BaseModel):
    """The result of `proactor calibrate`: systems on one part of the data.

    ``null_share``, ``width_0_share``: as in `metrics`. ``exact``: whether only fires with all required values
    right count as right; False: by similarity, as in files written before there was a choice by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    dialogues: int
    budget: float
    null_share: float
    width_0_share: float
    systems: tuple[TradeOff, ...]
    exact: bool = False


def curve(
    system: str,
    table: ScoreTable,
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    budget: float = BUDGET,
    threshold: float | None = None,
    chosen_on: str = "",
    rule: MatchRule = EXACT,
    resamples: int = 0,
) -> TradeOff:
    """The curve of one threshold for all tools.

    ``threshold``: chosen on other dialogues; None chooses on these. Raises ProactorError without dialogues.
    """
    if not dialogues:
        raise ProactorError("trade-off: no dialogues")
    events = steps(table, dialogues, assent, rule)
    levels, sums = events.levels()
    totals = [sum(map(known_references, dialogues)), float(len(dialogues))]
    points = [point_of_sums(np.append(row, totals), float(level)) for level, row in zip(levels, sums)]
    if threshold is None:
        threshold = choose_common(events, budget)
    fired = Thresholds(default=threshold).replay(table)
    return TradeOff(
        system=system,
        points=thin(points),
        human=human_point(dialogues, assent, rule=rule, resamples=resamples),
        chosen=point(dialogues, fired, assent, threshold=threshold, rule=rule, resamples=resamples),
        chosen_on=chosen_on,
    )


def thin(points: Sequence[TradeOffPoint], most: int = MOST) -> tuple[TradeOffPoint, ...]:
    """At most ``most`` points: the ends, and points evenly chosen among those that differ on the plot."""
    ends = (0, len(points) - 1)
    kept = [p for i, p in enumerate(points) if i in ends or _figures(p) != _figures(points[i - 1])]
    if len(kept) <= most:
        return tuple(kept)
    return tuple(kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int)))


def _figures(p: TradeOffPoint) -> tuple[float | None, ...]:
    """The figures that a curve is plotted by."""
    return p.wrong_per_100, p.turns_saved, p.recall, p.lead


def human_point(
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    rule: MatchRule = EXACT,
    resamples: int = 0,
) -> TradeOffPoint | None:
    """The logged agent: each logged trigger at the last decision before it. None where none is logged."""
    if not logs_triggers(dialogues):
        return None
    return point(dialogues, {d.id: human(d) for d in dialogues}, assent, rule=rule, resamples=resamples)


def single_point(
    system: str,
    dialogues: Sequence[Dialogue],
    outputs: Mapping[str, Outputs],
    assent: frozenset[str] = frozenset(),
    *,
    rule: MatchRule = EXACT,
    resamples: int = 0,
) -> TradeOff:
    """A system without thresholds: one point."""
    only = point(dialogues, outputs, assent, rule=rule, resamples=resamples)
    return TradeOff(system=system, points=(only,))


def policies(
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    rule: MatchRule = EXACT,
    resamples: int = 0,
) -> list[TradeOff]:
    """The policies that need no model, each as one point."""
    trade_offs = []
    for name, policy in POLICIES.items():
        if policy is human and not logs_triggers(dialogues):
            continue
        outputs = {d.id: policy(d) for d in dialogues}
        trade_offs.append(single_point(name, dialogues, outputs, assent, rule=rule, resamples=resamples))
    return trade_offs


def calibrate_on_dev(
    dev: ScoreTable,
    on_dev: Sequence[Dialogue],
    test: ScoreTable,
    on_test: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    budget: float = BUDGET,
    rule: MatchRule = EXACT,
    resamples: int = 2000,
) -> tuple[Thresholds, list[TradeOff]]:
    """Choose on dev, report on test.

    Returns the thresholds, and their results on test: the curve of the common threshold, and the point of a
    threshold per tool.
    """
    thresholds = choose(steps(dev, on_dev, assent, rule), budget)
    common = curve(
        "common threshold",
        test,
        on_test,
        assent,
        budget=budget,
        threshold=thresholds.default,
        chosen_on="dev",
        rule=rule,
        resamples=resamples,
    )
    fired = thresholds.replay(test)
    per_tool = single_point("threshold per tool", on_test, fired, assent, rule=rule, resamples=resamples)
    return thresholds, [common, per_tool]


def collect_trade_offs(
    part: str,
    dialogues: Sequence[Dialogue],
    budget: float,
    systems: Iterable[TradeOff],
    *,
    exact: bool = True,
) -> TradeOffs:
    """Systems on ``dialogues``, with the shares of windows that are unknown or of a single turn.

    ``exact``: whether they were scored by the exact rule, not by similarity.
    """
    widths = [width(r) for d in dialogues for r in d.references]
    known = [w for w in widths if w is not None]
    return TradeOffs(
        part=part,
        dialogues=len(dialogues),
        budget=budget,
        null_share=1 - len(known) / max(len(widths), 1),
        width_0_share=known.count(0) / max(len(known), 1),
        systems=tuple(systems),
        exact=exact,
    )


def save_trade_offs(path: Path, trade_offs: TradeOffs) -> None:
    """Write trade-offs as JSON, atomically."""
    atomic_file(path, (json.dumps(trade_offs.model_dump(mode="json"), indent=1) + "\n").encode())


def load_trade_offs(path: Path) -> TradeOffs:
    """Read what `save_trade_offs` wrote. Raises SourceError, naming file and key, for any other content."""
    return read_validated(path, TypeAdapter(TradeOffs))


def trade_off_table(trade_offs: TradeOffs) -> FittedTable:
    """Systems side by side: a curve by its chosen point, with 95% intervals by dialogue where there are any.

    Wrong, unasked (wrong because they came before an assent), late and turns saved are in 100 dialogues.
    """
    room = wrong_fire_limit(trade_offs.budget, trade_offs.dialogues)
    shares = {"null_share": trade_offs.null_share, "width_0_share": trade_offs.width_0_share}
    leaving = {"lead": 1, "fires": 2, "late": 3, "unasked": 4}
    titles = ("at", "wrong", "unasked", "late", "turns saved", "recall", "lead", "fires")
    table = FittedTable(
        f"{trade_offs.part}, in 100 dialogues (of {trade_offs.dialogues}); "
        f"budget {trade_offs.budget:g} wrong ({room} here)",
        [Column("system", name=True), *(Column(title, leaving.get(title)) for title in titles)],
        caption=windows_caption(shares),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for system in trade_offs.systems:
        p = system.chosen or system.points[0]
        table.add_row(
            system.system.replace("_", " "),
            "" if p.threshold is None else threshold_text(p.threshold),
            _cell(p, "wrong_per_100"),
            f"{p.before_assent_per_100:.1f}",
            f"{p.late_per_100:.1f}",
            _cell(p, "turns_saved"),
            _cell(p, "recall"),
            "–" if p.lead is None else f"{p.lead:.2f}",
            str(p.fires),
        )
    return table


def threshold_text(threshold: float) -> str:
    """A threshold for a reader; NEVER is "never"."""
    return "never" if threshold >= NEVER else f"{threshold:.3f}"


def _cell(p: TradeOffPoint, key: str) -> str:
    """A figure with its interval, escaped for rich."""
    digits = 2 if key == "recall" else 1
    text = f"{getattr(p, key):.{digits}f}"
    if bounds := p.intervals.get(key):
        text += rf" \[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
    return text
