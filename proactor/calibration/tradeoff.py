"""Lead against false fires: what firing earlier wins in turns, and how often it is wrong.

The figure people decide by: turns saved against the logged human trigger at no more than 1 wrong fire in 100
dialogues, and the recall there. Definitions, all [INFERRED], sums over the dialogues played (see
`thresholds.OUTCOME`; turns are those of both speakers):

- `wrong_per_100`: wrong fires in 100 dialogues: unmatched, repeats, and fires on a tool that needs assent
  before the assent.
- `turns_saved`: turns won in 100 dialogues, tau - u summed over references whose first fire was on time and
  no later than the logged human trigger tau.
  `saved_each`: their mean. An early fire wins nothing: a value or the assent was missing then, and the human
  could not have acted either.
  `early_turns`: what early fires that need no assent would add, for readers who disagree.
- `recall`: right first fires among references with a known window; right is on time, or early where no assent
  is needed.
- `lead`: mean s - u over right fires, positive when early; None without one.

Where every known window is a single turn (`width_0_share` 1), nothing can be won: `turns_saved` is 0 for
everybody, and the recall decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from proactor.calibration.score_table import ScoreTable
from proactor.calibration.thresholds import (
    BUDGET,
    NEVER,
    OUTCOME,
    Thresholds,
    allowed,
    choose,
    choose_common,
    outcome,
    steps,
)
from proactor.console import windows_caption
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import THETA
from proactor.dialogue.windows import width
from proactor.engine import ProactorError, atomic_file
from proactor.evaluation.policies import POLICIES, human, logs_triggers
from proactor.files import read_validated
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import bootstrap_sums

Outputs = Mapping[int, Iterable[Action]]
KEYS = (
    "wrong_per_100",
    "before_assent_per_100",
    "late_per_100",
    "turns_saved",
    "saved_each",
    "early_turns",
    "recall",
    "lead",
)
MOST = 200
"""Points of a curve that are kept."""


class Frozen(BaseModel):
    """Immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TradeOffPoint(Frozen):
    """One setting. `threshold`: None for a system without a common one. `intervals`: (low, high) at 95% by
    dialogue, where they were asked for.
    """

    threshold: float | None
    wrong_per_100: float
    turns_saved: float
    recall: float
    lead: float | None
    fires: int
    before_assent_per_100: float = 0.0
    late_per_100: float = 0.0
    saved_each: float | None = None
    early_turns: float = 0.0
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)


class TradeOff(Frozen):
    """A system's points, by falling threshold. `human`: the logged agent on the same dialogues. `chosen`: the
    point with most turns saved within the budget, at a threshold chosen on `chosen_on`; on other dialogues
    than these it may turn out above the budget.
    """

    system: str
    points: tuple[TradeOffPoint, ...]
    human: TradeOffPoint | None = None
    chosen: TradeOffPoint | None = None
    chosen_on: str = ""


class TradeOffs(Frozen):
    """What `proactor calibrate` found: systems on one part of the data. `null_share`, `width_0_share`: as in
    `metrics`.
    """

    part: str
    dialogues: int
    budget: float
    null_share: float
    width_0_share: float
    systems: tuple[TradeOff, ...]


def point(
    dialogues: Sequence[Dialogue],
    outputs: Mapping[str, Outputs],
    assent: frozenset[str] = frozenset(),
    *,
    threshold: float | None = None,
    theta: float = THETA,
    resamples: int = 0,
) -> TradeOffPoint:
    """The point of any system: dialogue id -> what it fired. `resamples`: for intervals, 0 leaves them
    out.
    """
    rows = np.array([[*outcome(d, outputs.get(d.id, {}), assent, theta), _known(d), 1.0] for d in dialogues])
    found = _point(rows.sum(axis=0), threshold)
    if not resamples:
        return found
    bounds = bootstrap_sums(rows, _rates, KEYS, resamples=resamples)
    kept = {k: (b.low, b.high) for k, b in bounds.items() if np.isfinite((b.low, b.high)).all()}
    return found.model_copy(update={"intervals": kept})


def _known(dialogue: Dialogue) -> float:
    return float(sum(r.ready is not None for r in dialogue.references))


def _rates(sums: Array) -> dict[str, Array]:
    """KEYS of sums [..., OUTCOME, references, dialogues]; undefined ones are NaN."""
    v = {name: sums[..., i] for i, name in enumerate((*OUTCOME, "references", "dialogues"))}

    def ratio(a: Array, b: Array, empty: float = np.nan) -> Array:
        out = np.full(np.shape(a), empty)
        np.divide(a, b, out=out, where=b != 0)
        return out

    return {
        "wrong_per_100": ratio(100 * (v["false"] + v["before_assent"]), v["dialogues"]),
        "before_assent_per_100": ratio(100 * v["before_assent"], v["dialogues"]),
        "late_per_100": ratio(100 * v["late"], v["dialogues"]),
        "turns_saved": ratio(100 * v["saved_turns"], v["dialogues"]),
        "saved_each": ratio(v["saved_turns"], v["saved"]),
        "early_turns": ratio(100 * v["early_turns"], v["dialogues"]),
        "recall": ratio(v["right"], v["references"], 0.0),
        "lead": ratio(v["lead"], v["right"]),
    }


def _point(sums: Array, threshold: float | None) -> TradeOffPoint:
    rates = {k: float(x) for k, x in _rates(sums).items()}
    optional = {k: None if np.isnan(rates.pop(k)) else float(_rates(sums)[k]) for k in ("saved_each", "lead")}
    return TradeOffPoint(threshold=threshold, fires=int(sums[OUTCOME.index("fires")]), **rates, **optional)


def curve(
    system: str,
    table: ScoreTable,
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    budget: float = BUDGET,
    threshold: float | None = None,
    chosen_on: str = "",
    theta: float = THETA,
    resamples: int = 0,
) -> TradeOff:
    """The curve of one threshold for all tools. `threshold`: the one chosen on other dialogues; None chooses
    on these.
    """
    if not dialogues:
        raise ProactorError("trade-off: no dialogues")
    found = steps(table, dialogues, assent, theta)
    at, sums = found.levels()
    ends = [sum(map(_known, dialogues)), float(len(dialogues))]
    points = [_point(np.append(row, ends), float(level)) for level, row in zip(at, sums)]
    chosen_at = choose_common(found, budget) if threshold is None else threshold
    fired = Thresholds(default=chosen_at).replay(table)
    return TradeOff(
        system=system,
        points=thinned(points),
        human=human_point(dialogues, assent, theta=theta, resamples=resamples),
        chosen=point(dialogues, fired, assent, threshold=chosen_at, theta=theta, resamples=resamples),
        chosen_on=chosen_on,
    )


def thinned(points: Sequence[TradeOffPoint], most: int = MOST) -> tuple[TradeOffPoint, ...]:
    """At most `most` points, evenly spread over those that differ in what a curve shows; the first and the
    last stay.
    """
    kept = [
        p for i, p in enumerate(points) if i in (0, len(points) - 1) or _shown(p) != _shown(points[i - 1])
    ]
    if len(kept) <= most:
        return tuple(kept)
    return tuple(kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int)))


def _shown(p: TradeOffPoint) -> tuple[float | None, ...]:
    return p.wrong_per_100, p.turns_saved, p.recall, p.lead


def human_point(
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    theta: float = THETA,
    resamples: int = 0,
) -> TradeOffPoint | None:
    """The logged agent: every logged trigger at the last decision before it; None where no dialogue logs
    one.
    """
    if not logs_triggers(dialogues):
        return None
    return point(dialogues, {d.id: human(d) for d in dialogues}, assent, theta=theta, resamples=resamples)


def single(
    system: str,
    dialogues: Sequence[Dialogue],
    outputs: Mapping[str, Outputs],
    assent: frozenset[str] = frozenset(),
    *,
    theta: float = THETA,
    resamples: int = 0,
) -> TradeOff:
    """A system without probabilities: one point."""
    return TradeOff(
        system=system, points=(point(dialogues, outputs, assent, theta=theta, resamples=resamples),)
    )


def policies(
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    theta: float = THETA,
    resamples: int = 0,
) -> list[TradeOff]:
    """The policies that need no model, each as one point."""
    return [
        single(
            name, dialogues, {d.id: policy(d) for d in dialogues}, assent, theta=theta, resamples=resamples
        )
        for name, policy in POLICIES.items()
        if policy is not human or logs_triggers(dialogues)
    ]


def calibrated(
    dev: ScoreTable,
    on_dev: Sequence[Dialogue],
    test: ScoreTable,
    on_test: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    *,
    budget: float = BUDGET,
    theta: float = THETA,
    resamples: int = 2000,
) -> tuple[Thresholds, list[TradeOff]]:
    """Choose on dev, report on test: the thresholds, and on test the curve of a common threshold and the
    point of a threshold for each tool.
    """
    chosen = choose(steps(dev, on_dev, assent, theta), budget)
    common = curve(
        "common threshold",
        test,
        on_test,
        assent,
        budget=budget,
        threshold=chosen.default,
        chosen_on="dev",
        theta=theta,
        resamples=resamples,
    )
    each = single(
        "threshold per tool", on_test, chosen.replay(test), assent, theta=theta, resamples=resamples
    )
    return chosen, [common, each]


def gather(part: str, dialogues: Sequence[Dialogue], budget: float, systems: Iterable[TradeOff]) -> TradeOffs:
    """Systems on `dialogues`, with the shares of windows that are unknown or of a single turn."""
    widths = [width(r) for d in dialogues for r in d.references]
    known = [w for w in widths if w is not None]
    return TradeOffs(
        part=part,
        dialogues=len(dialogues),
        budget=budget,
        null_share=1 - len(known) / max(len(widths), 1),
        width_0_share=known.count(0) / max(len(known), 1),
        systems=tuple(systems),
    )


def save_trade_offs(path: Path, found: TradeOffs) -> None:
    """Write them as JSON, whole."""
    atomic_file(path, (json.dumps(found.model_dump(mode="json"), indent=1) + "\n").encode())


def load_trade_offs(path: Path) -> TradeOffs:
    """Read them back. SourceError, one line, names the file and the key."""
    return read_validated(path, TypeAdapter(TradeOffs))


def trade_off_table(found: TradeOffs) -> Table:
    """Systems side by side: a curve by its chosen point, with 95% intervals by dialogue where there are any.
    Wrong, unasked (those of the wrong ones that came before an assent), late and turns saved are in 100
    dialogues.
    """
    room = allowed(found.budget, found.dialogues)
    table = Table(
        title=f"{found.part}, in 100 dialogues (of {found.dialogues}); budget {found.budget:g} wrong ({room} here)",
        title_justify="left",
        caption=windows_caption({"null_share": found.null_share, "width_0_share": found.width_0_share}),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("system", no_wrap=True)
    for name in ("at", "wrong", "unasked", "late", "turns saved", "recall", "lead", "fires"):
        table.add_column(name, justify="right", no_wrap=True)
    for system in found.systems:
        p = system.chosen or system.points[0]
        at = "" if p.threshold is None else "never" if p.threshold >= NEVER else f"{p.threshold:.3f}"
        table.add_row(
            system.system.replace("_", " "),
            at,
            _cell(p, "wrong_per_100"),
            f"{p.before_assent_per_100:.1f}",
            f"{p.late_per_100:.1f}",
            _cell(p, "turns_saved"),
            _cell(p, "recall"),
            "–" if p.lead is None else f"{p.lead:.2f}",
            str(p.fires),
        )
    return table


def _cell(p: TradeOffPoint, key: str) -> str:
    digits = 2 if key == "recall" else 1
    bounds = p.intervals.get(key)
    return f"{getattr(p, key):.{digits}f}" + (
        rf" \[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else ""
    )
