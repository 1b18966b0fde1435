"""Scores of proactive behaviour over a corpus: how well the proposed actions fit, and how well they are
timed.

Formulas are methods 1.5: names and directions [NOTES], bodies [INFERRED] unless tagged; `matching.py` says
what an early, on-time, late or false fire is. Every metric is a function of sums over dialogues (`FIELDS`),
so that `bootstrap.py` can recompute it for any resample. An empty denominator gives 0, except Difference and
the leads, which are then undefined (None).

How to read them: absolute PRI is 1 for one correct action in a whole corpus, and for firing at every open
turn. Read it beside first-fire F1 (one fire a reference; a repeat is false), recall, and the trivial policies
of `policies.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proactor.dialogue import Action, Dialogue, Reference
from proactor.dialogue.matching import HITS, THETA, Judged, Timing, judge
from proactor.dialogue.windows import width
from proactor.engine import ProactorError
from proactor.scoring.utility import Costs, cost_table, judged_parts, total

Array = npt.NDArray[np.float64]

FIELDS = (
    "dialogues",
    "decisions",
    "acted",
    "ac_sum",
    "max_ac_sum",
    "actions",
    "ready",
    "early",
    "on_time",
    "late",
    "false",
    "early_weight",
    "lead_sum",
    "references",
    "hit",
    "first_actions",
    "first_hits",
    "first_on_time",
    "first_late",
    "first_false",
    "first_repeats",
    "first_fires",
    "first_lead",
    "observed",
    "saved",
    "saved_sum",
    "saved_early_sum",
    "utility_sum",
    "reward_sum",
    "rewarded",
    "unparsed",
    "width_0_references",
    "null_references",
    "null_masked",
    "early_masked",
)
"""The sums of a dialogue. decisions: turns scored; acted: those with an action left after masking; actions:
all statuses; ready: fires, repeats included; early_weight: sum of the PT_w weights of early fires; lead_sum:
of `s - u` over early and on-time fires; references: with a known window; width_0_references: those of a
single ready turn; first_*: the first-fire count (actions: what masking leaves; fires: right, late, false and
repeated ones); unparsed: outputs not read in full.

Against the logged human trigger tau [INFERRED]: observed: references with a known window and a tau; saved:
those whose first fire was on time and at `u <= tau`, and saved_sum the turns `tau - u` of these;
saved_early_sum: the same of early first fires, which are no gain where a value or the assent was still
missing, so no metric counts them as one.
"""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one dialogue adds to a corpus: `sums` holds FIELDS."""

    dialogue: str
    sums: dict[str, float]


def score_dialogue(
    dialogue: Dialogue,
    outputs: Mapping[int, Sequence[Action]],
    *,
    rewards: Mapping[int, float] | None = None,
    unparsed: int = 0,
    costs: Costs | None = None,
    theta: float = THETA,
) -> Contribution:
    """Score a replayed dialogue.

    `outputs`: turn -> proposed actions; a decision turn without an entry is a wait. `rewards`: turn -> turn
    reward.
    `unparsed`: outputs that could not be read in full (their readable part is in `outputs`). `costs`: for the
    utility.
    """
    prices = cost_table(costs)
    sums = dict.fromkeys(FIELDS, 0.0)
    known = {r.id for r in dialogue.references if r.ready is not None}
    hit: set[str] = set()
    first: dict[str, Timing] = {}
    turns = sorted({*dialogue.decision_turns, *outputs})
    for turn in turns:
        actions = outputs.get(turn, ())
        own: list[Judged] = []
        if actions:
            own = judge(dialogue, turn, actions, fired=first, theta=theta)
            _add_turn(sums, turn, judge(dialogue, turn, actions, theta=theta), hit)
            _add_first_fires(sums, turn, own, first)
        sums["utility_sum"] += total(judged_parts(dialogue, turn, own, first, False, prices))
    sums["utility_sum"] -= unparsed * prices.default.interrupt_cost
    sums["dialogues"], sums["decisions"], sums["references"], sums["hit"] = (
        1,
        len(turns),
        len(known),
        len(hit),
    )
    sums["observed"] = sum(
        r.ready is not None and r.observed_trigger is not None for r in dialogue.references
    )
    sums["width_0_references"] = sum(width(r) == 0 for r in dialogue.references)
    sums["null_references"] = len(dialogue.references) - len(known)
    sums["unparsed"] = unparsed
    if rewards:
        sums["reward_sum"], sums["rewarded"] = float(sum(rewards.values())), len(rewards)
    return Contribution(dialogue.id, sums)


def _add_turn(sums: dict[str, float], turn: int, judged: Sequence[Judged], hit: set[str]) -> None:
    """The form that counts repeats: AC, MaxAC, PT, FTR, RAR, window precision and recall."""
    kept = [j for j in judged if not j.masked]
    sums["null_masked"] += len(judged) - len(kept)
    sums["actions"] += len(kept)
    if kept:
        sums["acted"] += 1
        sums["ac_sum"] += sum(j.similarity for j in kept) / len(kept)
        sums["max_ac_sum"] += max(j.similarity for j in kept)
    for j in kept:
        if j.timing is None:
            continue
        sums["ready"] += 1
        sums[j.timing.value] += 1
        if j.timing in HITS and j.reference is not None:
            hit.add(j.reference.id)
            sums["lead_sum"] += j.reference.ready[0] - turn if j.reference.ready else 0.0
            sums["early_weight"] += early_weight(j.reference, turn) if j.timing is Timing.EARLY else 0.0


def _add_first_fires(
    sums: dict[str, float], turn: int, judged: Sequence[Judged], first: dict[str, Timing]
) -> None:
    for j in judged:
        sums["early_masked"] += j.timing is Timing.AFTER_EARLY
        sums["first_actions"] += not j.masked
        if j.masked or j.timing is None:
            continue
        sums["first_fires"] += 1
        sums["first_late"] += j.timing is Timing.LATE
        sums["first_false"] += j.timing is Timing.FALSE
        sums["first_repeats"] += j.timing is Timing.REPEAT
        if j.reference is None:
            continue
        first.setdefault(j.reference.id, j.timing)
        if j.timing in HITS and j.reference.ready is not None:
            sums["first_hits"] += 1
            sums["first_on_time"] += j.timing is Timing.ON_TIME
            sums["first_lead"] += j.reference.ready[0] - turn
            _add_saved(sums, turn, j.reference, j.timing)


def _add_saved(sums: dict[str, float], turn: int, reference: Reference, timing: Timing) -> None:
    if reference.observed_trigger is None or turn > reference.observed_trigger:
        return
    early = timing is Timing.EARLY
    sums["saved"] += not early
    sums["saved_early_sum" if early else "saved_sum"] += reference.observed_trigger - turn


def early_weight(reference: Reference, turn: int) -> float:
    """Weight of an early fire in PT_w: `1 - (s - u) / (s - o + 1)`, in (0, 1) [INFERRED]."""
    if reference.ready is None or reference.coverage is None:
        raise ProactorError(f"reference {reference.id!r} has no known window")
    start = reference.ready[0]
    return 1.0 - (start - turn) / (start - reference.coverage[0] + 1)


def metrics_of(sums: Array) -> dict[str, Array]:
    """Metrics from sums: [..., len(FIELDS)] float64 -> each [...]; undefined ones are NaN.

    reward: mean turn reward. first_fire_precision = first hits / first fires, first_fire_recall = first hits
    / references, first_fire_f1 their harmonic mean; on_time_f1 the same with early fires as misses (the
    strict reading). precision and recall: window precision (early + on_time) / ready and hit references /
    references, repeats counted. lead: mean `s - u` over first hits, in turns, positive when early;
    lead_repeats: over all early and on-time fires. AC, MaxAC, Difference = MaxAC / AC - 1 [DERIVED], PT,
    PT_w, FTR, RAR over N = actions (identity RAR = PT + FTR + late / N), and the absolute PRI. first_pt,
    first_ftr, first_rar, first_late_share: the same over first_actions with each reference's first fire
    alone, a repeat counted as false (so the identity holds); the parity form is the other one.

    To decide by [INFERRED]: turns_saved = 100 saved_sum / dialogues, turns a hundred dialogues win against
    the logged human trigger; saved_each: the mean of these over the references saved; false_per_100 = 100
    (first_false + first_repeats) / dialogues, to which `tradeoff` adds fires before an assent
    (wrong_per_100), as it knows the tools; utility: mean over dialogues (see utility.py). null_share and
    width_0_share: references with an unknown window among all, and with one of a single turn among the known
    ones, where no turn can be won.
    """
    v = {name: sums[..., i] for i, name in enumerate(FIELDS)}
    right = v["early"] + v["on_time"]
    ac, max_ac = _ratio(v["ac_sum"], v["acted"]), _ratio(v["max_ac_sum"], v["acted"])
    pt, ftr, rar = (_ratio(x, v["actions"]) for x in (right, v["false"], v["ready"]))
    precision, recall = _ratio(right, v["ready"]), _ratio(v["hit"], v["references"])
    difference = _ratio(max_ac, ac, np.nan) - 1.0
    ci, ti, pri = absolute_pri(ac, max_ac, difference, pt, ftr, rar)
    first_wrong = v["first_false"] + v["first_repeats"]
    return {
        "reward": _ratio(v["reward_sum"], v["rewarded"]),
        "first_fire_f1": _ratio(2 * v["first_hits"], v["first_fires"] + v["references"]),
        "first_fire_precision": _ratio(v["first_hits"], v["first_fires"]),
        "first_fire_recall": _ratio(v["first_hits"], v["references"]),
        "on_time_f1": _ratio(2 * v["first_on_time"], v["first_fires"] + v["references"]),
        "on_time_recall": _ratio(v["first_on_time"], v["references"]),
        "first_pt": _ratio(v["first_hits"], v["first_actions"]),
        "first_ftr": _ratio(first_wrong, v["first_actions"]),
        "first_rar": _ratio(v["first_fires"], v["first_actions"]),
        "first_late_share": _ratio(v["first_late"], v["first_actions"]),
        "turns_saved": _ratio(100 * v["saved_sum"], v["dialogues"]),
        "saved_each": _ratio(v["saved_sum"], v["saved"], np.nan),
        "false_per_100": _ratio(100 * first_wrong, v["dialogues"]),
        "utility": _ratio(v["utility_sum"], v["dialogues"]),
        "precision": precision,
        "recall": recall,
        "window_f1": harmonic(precision, recall),
        "lead": _ratio(v["first_lead"], v["first_hits"], np.nan),
        "lead_repeats": _ratio(v["lead_sum"], right, np.nan),
        "pri": pri,
        "ci": ci,
        "ti": ti,
        "ac": ac,
        "max_ac": max_ac,
        "difference": difference,
        "pt": pt,
        "pt_weighted": _ratio(v["on_time"] + v["early_weight"], v["actions"]),
        "ftr": ftr,
        "rar": rar,
        "late_share": _ratio(v["late"], v["actions"]),
        "unparsed_share": _ratio(v["unparsed"], v["decisions"]),
        "null_share": _ratio(v["null_references"], v["references"] + v["null_references"]),
        "width_0_share": _ratio(v["width_0_references"], v["references"]),
    }


def aggregate(contributions: Iterable[Contribution]) -> dict[str, float | None]:
    """Metrics of a corpus as plain numbers (None: undefined), and the counts behind them under their FIELDS
    names.
    """
    total = matrix(contributions).sum(axis=0)
    result: dict[str, float | None] = {
        k: None if np.isnan(x) else float(x) for k, x in metrics_of(total).items()
    }
    return result | {name: float(x) for name, x in zip(FIELDS, total) if not name.endswith("_sum")}


def matrix(contributions: Iterable[Contribution]) -> Array:
    """[dialogues, len(FIELDS)] float64."""
    rows = [[c.sums[name] for name in FIELDS] for c in contributions]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FIELDS))


def harmonic(a: Array, b: Array) -> Array:
    """Harmonic mean, 0 where either is 0."""
    return _ratio(2 * a * b, a + b)


def absolute_pri(
    ac: Array, max_ac: Array, difference: Array, pt: Array, ftr: Array, rar: Array
) -> tuple[Array, Array, Array]:
    """(CI, TI, PRI): `CI = mean(AC, MaxAC, 1/(1+Diff))`, `TI = mean(PT, 1-FTR, RAR)`, `PRI = 2 CI TI/(CI+TI)`
    [INFERRED; that PRI is a harmonic mean of the two: NOTES]. Undefined Difference (NaN) enters as the worst,
    0.
    """
    agreement = np.where(np.isnan(difference), 0.0, 1.0 / (1.0 + np.nan_to_num(difference)))
    ci = (ac + max_ac + agreement) / 3
    ti = (pt + 1 - ftr + rar) / 3
    return ci, ti, harmonic(ci, ti)


def relative_pri(systems: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """ci, ti, pri of each system by min-max over the systems compared [DERIVED that PRI is relative;
    composition INFERRED].

    `CI = mean(mm(AC), mm(MaxAC), 1-mm(Diff))`, `TI = mean(mm(PT), 1-mm(FTR), mm(RAR))`; a constant column
    gives 0.5. A system whose Difference is undefined gets the worst value there and does not stretch the
    range.
    """
    columns = {
        key: [row[key] for row in systems.values()]
        for key in ("ac", "max_ac", "difference", "pt", "ftr", "rar")
    }
    mm = {key: _min_max(column) for key, column in columns.items()}
    result: dict[str, dict[str, float]] = {}
    for i, name in enumerate(systems):
        ci = (mm["ac"][i] + mm["max_ac"][i] + 1 - mm["difference"][i]) / 3
        ti = (mm["pt"][i] + 1 - mm["ftr"][i] + mm["rar"][i]) / 3
        result[name] = {
            "ci": float(ci),
            "ti": float(ti),
            "pri": float(harmonic(np.asarray(ci), np.asarray(ti))),
        }
    return result


def _min_max(column: Sequence[float | None]) -> Array:
    """Scaled to 0..1; None becomes 1 (only Difference can be None, where 1 is the worst)."""
    known = [x for x in column if x is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return np.array([1.0 if x is None else 0.5 if high == low else (x - low) / (high - low) for x in column])


def _ratio(numerator: Array, denominator: Array, empty: float = 0.0) -> Array:
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


ALL = tuple(metrics_of(np.zeros(len(FIELDS))))
"""Names of all metrics."""
