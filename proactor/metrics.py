"""Scores of proactive behaviour over a corpus: how well the proposed actions fit, and how well they are timed.

Formulas are methods 1.5: names and directions [NOTES], bodies [INFERRED] unless tagged; `matching.py` says what an early, on-time,
late or false fire is. Every metric is a function of sums over dialogues (`FIELDS`), so that `bootstrap.py` can recompute it
for any resample. An empty denominator gives 0, except Difference and lead, which are then undefined (None).

How to read them: absolute PRI is 1 for one correct action in a whole corpus, and for firing at every open turn. Read it beside
first-fire F1 (one fire a reference; a repeat is false), recall, and the trivial policies of `policies.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proactor.dialogue import Action, Dialogue, Reference
from proactor.matching import HITS, THETA, Judged, Timing, judge

Array = npt.NDArray[np.float64]

FIELDS = (
    "decisions", "acted", "ac_sum", "max_ac_sum", "actions", "ready", "early", "on_time", "late", "false", "early_weight",
    "references", "hit", "first_hits", "first_on_time", "first_fires", "first_lead", "reward_sum", "rewarded", "unparsed",
    "null_references", "null_masked", "early_masked",
)  # fmt: skip
"""The sums of a dialogue. decisions: turns scored; acted: those with an action left after masking; actions: all statuses;
ready: fires, repeats included; early_weight: sum of the PT_w weights of early fires; references: with a known window;
first_*: the first-fire count (fires: right, late, false and repeated ones); unparsed: outputs not read in full."""


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
    theta: float = THETA,
) -> Contribution:
    """Score a replayed dialogue.

    `outputs`: turn -> proposed actions; a decision turn without an entry is a wait. `rewards`: turn -> turn reward.
    `unparsed`: outputs that could not be read in full (their readable part is in `outputs`).
    """
    sums = dict.fromkeys(FIELDS, 0.0)
    known = {r.id for r in dialogue.references if r.ready is not None}
    hit: set[str] = set()
    first: dict[str, Timing] = {}
    turns = sorted({*dialogue.decision_turns, *outputs})
    for turn in turns:
        actions = outputs.get(turn, ())
        if actions:
            _add_turn(sums, turn, judge(dialogue, turn, actions, theta=theta), hit)
            _add_first_fires(sums, turn, judge(dialogue, turn, actions, fired=first, theta=theta), first)
    sums["decisions"], sums["references"], sums["hit"] = len(turns), len(known), len(hit)
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
            sums["early_weight"] += early_weight(j.reference, turn) if j.timing is Timing.EARLY else 0.0


def _add_first_fires(sums: dict[str, float], turn: int, judged: Sequence[Judged], first: dict[str, Timing]) -> None:
    for j in judged:
        sums["early_masked"] += j.timing is Timing.AFTER_EARLY
        if j.masked or j.timing is None:
            continue
        sums["first_fires"] += 1
        if j.reference is None:
            continue
        first.setdefault(j.reference.id, j.timing)
        if j.timing in HITS and j.reference.ready is not None:
            sums["first_hits"] += 1
            sums["first_on_time"] += j.timing is Timing.ON_TIME
            sums["first_lead"] += j.reference.ready[0] - turn


def early_weight(reference: Reference, turn: int) -> float:
    """Weight of an early fire in PT_w: `1 - (s - u) / (s - o + 1)`, in (0, 1) [INFERRED]."""
    if reference.ready is None or reference.coverage is None:
        raise ValueError(f"reference {reference.id!r} has no known window")
    start = reference.ready[0]
    return 1.0 - (start - turn) / (start - reference.coverage[0] + 1)


def metrics_of(sums: Array) -> dict[str, Array]:
    """Metrics from sums: [..., len(FIELDS)] float64 -> each [...]; undefined ones are NaN.

    reward: mean turn reward. first_fire_precision = first hits / first fires, first_fire_recall = first hits / references,
    first_fire_f1 their harmonic mean; on_time_f1 the same with early fires as misses (the strict reading). precision and
    recall: window precision (early + on_time) / ready and hit references / references, repeats counted. lead: mean `s - u`
    over first hits, in turns, positive when early. AC, MaxAC, Difference = MaxAC / AC - 1 [DERIVED], PT, PT_w, FTR, RAR over
    N = actions (identity RAR = PT + FTR + late / N), and the absolute PRI.
    """
    v = {name: sums[..., i] for i, name in enumerate(FIELDS)}
    right = v["early"] + v["on_time"]
    ac, max_ac = _ratio(v["ac_sum"], v["acted"]), _ratio(v["max_ac_sum"], v["acted"])
    pt, ftr, rar = (_ratio(x, v["actions"]) for x in (right, v["false"], v["ready"]))
    precision, recall = _ratio(right, v["ready"]), _ratio(v["hit"], v["references"])
    difference = _ratio(max_ac, ac, np.nan) - 1.0
    ci, ti, pri = absolute_pri(ac, max_ac, difference, pt, ftr, rar)
    return {
        "reward": _ratio(v["reward_sum"], v["rewarded"]),
        "first_fire_f1": _ratio(2 * v["first_hits"], v["first_fires"] + v["references"]),
        "first_fire_precision": _ratio(v["first_hits"], v["first_fires"]),
        "first_fire_recall": _ratio(v["first_hits"], v["references"]),
        "on_time_f1": _ratio(2 * v["first_on_time"], v["first_fires"] + v["references"]),
        "precision": precision,
        "recall": recall,
        "window_f1": harmonic(precision, recall),
        "lead": _ratio(v["first_lead"], v["first_hits"], np.nan),
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
    }


def aggregate(contributions: Iterable[Contribution]) -> dict[str, float | None]:
    """Metrics of a corpus as plain numbers (None: undefined), and the counts behind them under their FIELDS names."""
    total = matrix(contributions).sum(axis=0)
    result: dict[str, float | None] = {k: None if np.isnan(x) else float(x) for k, x in metrics_of(total).items()}
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
    """(CI, TI, PRI): `CI = mean(AC, MaxAC, 1/(1+Diff))`, `TI = mean(PT, 1-FTR, RAR)`, `PRI = 2 CI TI/(CI+TI)` [INFERRED;
    that PRI is a harmonic mean of the two: NOTES]. Undefined Difference (NaN) enters as the worst, 0."""
    agreement = np.where(np.isnan(difference), 0.0, 1.0 / (1.0 + np.nan_to_num(difference)))
    ci = (ac + max_ac + agreement) / 3
    ti = (pt + 1 - ftr + rar) / 3
    return ci, ti, harmonic(ci, ti)


def relative_pri(systems: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """ci, ti, pri of each system by min-max over the systems compared [DERIVED that PRI is relative; composition INFERRED].

    `CI = mean(mm(AC), mm(MaxAC), 1-mm(Diff))`, `TI = mean(mm(PT), 1-mm(FTR), mm(RAR))`; a constant column gives 0.5. A system
    whose Difference is undefined gets the worst value there and does not stretch the range.
    """
    columns = {
        key: [row[key] for row in systems.values()] for key in ("ac", "max_ac", "difference", "pt", "ftr", "rar")
    }
    mm = {key: _min_max(column) for key, column in columns.items()}
    result: dict[str, dict[str, float]] = {}
    for i, name in enumerate(systems):
        ci = (mm["ac"][i] + mm["max_ac"][i] + 1 - mm["difference"][i]) / 3
        ti = (mm["pt"][i] + 1 - mm["ftr"][i] + mm["rar"][i]) / 3
        result[name] = {"ci": float(ci), "ti": float(ti), "pri": float(harmonic(np.asarray(ci), np.asarray(ti)))}
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
