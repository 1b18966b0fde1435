"""Metrics of proactive behaviour over a corpus: how well proposed actions fit, and how well they are timed.

Formulas are those of methods 1.5: names and directions [NOTES], bodies [INFERRED] unless tagged.
`matching.py` defines early, on-time, late and false fires, and two rules of what counts as the wanted action.
The headline is exact: all required values are right. Its forms by similarity (at least half of the values)
are called ``similarity_*``; AC, MaxAC, PT, FTR, RAR, PRI and the utility are by similarity.

Every metric is a function of sums over dialogues (`FIELDS`), so that `bootstrap.py` can recompute it for any
resample. An empty denominator gives 0, except for values_right, saved_each, Difference and the leads, which
are then undefined (None).

Caution: absolute PRI is 1 for one correct action in a whole corpus, and for firing at every open turn. Read
it beside first-fire F1 (one fire per reference; a repeat is false), recall, and trivial policies
(`evaluation.policies`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from proactor.dialogue import Action, Dialogue, Reference
from proactor.dialogue.matching import EXACT, HITS, ClassifiedAction, MatchRule, Timing, classify
from proactor.dialogue.windows import turns_won, width
from proactor.engine import ProactorError
from proactor.scoring.arrays import Array, ratio
from proactor.scoring.pri import absolute_pri, harmonic
from proactor.scoring.utility import Costs, cost_table, total, utility_parts

BY_RULE = (
    "right",
    "hit",
    "first_actions",
    "first_hits",
    "first_on_time",
    "first_late",
    "first_false",
    "first_repeats",
    "first_fires",
    "first_lead",
    "saved",
    "saved_sum",
    "saved_early_sum",
    "early_masked",
)
"""The sums that are taken twice: exact under these names, by similarity as ``similarity_*``."""

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
    *BY_RULE,
    *(f"similarity_{name}" for name in BY_RULE),
    "values_right_hits",
    "observed",
    "utility_sum",
    "reward_sum",
    "rewarded",
    "unparsed",
    "width_0_references",
    "null_references",
    "null_masked",
)
"""The sums of a dialogue.

decisions: turns scored; acted: those with an action left after masking; actions: of all statuses; ready:
fires, repeats included, of which early, on_time, late and false are by similarity, and right those early or
on time by the exact rule; early_weight: PT_w weights of early fires; lead_sum: `s - u` over early and on-time
fires; references: those with a known window; hit: those with a right fire, repeats counted;
width_0_references: those of a single ready turn; first_*: the first-fire count (actions: those left after
masking; fires: right, late, false and repeated ones); values_right_hits: hits by similarity
(similarity_first_hits) whose required values are all right; unparsed: outputs not read in full.

Against tau, the turn at which the logged human decided (`windows.decision_of`) [INFERRED]: observed:
references with a known window and a tau; saved: those whose first fire was on time and at `u <= tau`;
saved_sum: the turns `tau - u` of these; saved_early_sum: the same for early first fires, which no metric
counts as a gain, since a value or the assent was still missing.
"""


@dataclass(frozen=True, slots=True)
class Contribution:
    """The sums (FIELDS) that one dialogue adds to a corpus."""

    dialogue: str
    sums: dict[str, float]


def score_dialogue(
    dialogue: Dialogue,
    outputs: Mapping[int, Sequence[Action]],
    *,
    rewards: Mapping[int, float] | None = None,
    unparsed: int = 0,
    costs: Costs | None = None,
    rule: MatchRule = EXACT,
) -> Contribution:
    """Score a replayed dialogue.

    ``outputs``: turn -> proposed actions; a decision turn without an entry is a wait. ``rewards``:
    turn -> turn reward. ``unparsed``: number of outputs not read in full (their readable part is in
    ``outputs``). ``costs``: the utility's costs. ``rule``: that of the headline; the sums by
    similarity are taken at its ``theta``.
    """
    prices = cost_table(costs)
    sums = dict.fromkeys(FIELDS, 0.0)
    similar = rule.by_similarity
    known = sum(r.ready is not None for r in dialogue.references)
    fired: dict[str, Timing] = {}  # by similarity, as the utility counts
    turns = sorted({*dialogue.decision_turns, *outputs})
    for turn in turns:
        actions = outputs.get(turn, ())
        classified: list[ClassifiedAction] = []
        if actions:
            classified = classify(dialogue, turn, actions, fired=fired, rule=similar)
            _add_turn(sums, turn, classify(dialogue, turn, actions, rule=similar))
            _add_values_right(sums, classified, rule)
            for j in classified:
                if j.reference is not None and j.timing is not None and not j.masked:
                    fired.setdefault(j.reference.id, j.timing)
        sums["utility_sum"] += total(utility_parts(dialogue, turn, classified, fired, False, prices))
    for prefix, by in (("", rule), ("similarity_", similar)):
        sums |= {prefix + name: value for name, value in _sums_by_rule(dialogue, outputs, by).items()}
    sums["utility_sum"] -= unparsed * prices.default.interrupt_cost
    sums["dialogues"], sums["decisions"] = 1, len(turns)
    sums["references"] = known
    sums["observed"] = sum(
        r.ready is not None and r.observed_trigger is not None for r in dialogue.references
    )
    sums["width_0_references"] = sum(width(r) == 0 for r in dialogue.references)
    sums["null_references"] = len(dialogue.references) - known
    sums["unparsed"] = unparsed
    if rewards:
        sums["reward_sum"], sums["rewarded"] = float(sum(rewards.values())), len(rewards)
    return Contribution(dialogue.id, sums)


def _add_turn(sums: dict[str, float], turn: int, classified: Sequence[ClassifiedAction]) -> None:
    """Sums of the form that counts repeats, by similarity: AC, MaxAC, PT, FTR, RAR."""
    kept = [j for j in classified if not j.masked]
    sums["null_masked"] += len(classified) - len(kept)
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
            sums["lead_sum"] += j.reference.ready[0] - turn if j.reference.ready else 0.0
            sums["early_weight"] += early_weight(j.reference, turn) if j.timing is Timing.EARLY else 0.0


def _add_values_right(
    sums: dict[str, float], classified: Iterable[ClassifiedAction], rule: MatchRule
) -> None:
    for j in classified:
        if j.timing in HITS and j.reference is not None:
            sums["values_right_hits"] += rule.accepts(j.action, j.reference)


def _sums_by_rule(
    dialogue: Dialogue, outputs: Mapping[int, Sequence[Action]], rule: MatchRule
) -> dict[str, float]:
    """The sums BY_RULE: hits of the form that counts repeats, and first fires."""
    sums = dict.fromkeys(BY_RULE, 0.0)
    hit: set[str] = set()
    first: dict[str, Timing] = {}
    for turn, actions in sorted(outputs.items()):
        for j in classify(dialogue, turn, actions, rule=rule):
            if j.timing in HITS and j.reference is not None:
                sums["right"] += 1
                hit.add(j.reference.id)
        _add_first_fires(
            sums, dialogue, turn, classify(dialogue, turn, actions, fired=first, rule=rule), first
        )
    sums["hit"] = len(hit)
    return sums


def _add_first_fires(
    sums: dict[str, float],
    dialogue: Dialogue,
    turn: int,
    classified: Sequence[ClassifiedAction],
    first: dict[str, Timing],
) -> None:
    for j in classified:
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
            if (won := turns_won(dialogue, j.reference, turn)) is not None:
                early = j.timing is Timing.EARLY
                sums["saved"] += not early
                sums["saved_early_sum" if early else "saved_sum"] += won


def early_weight(reference: Reference, turn: int) -> float:
    """Weight of an early fire in PT_w: ``1 - (s - u) / (s - o + 1)``, in (0, 1) [INFERRED]."""
    if reference.ready is None or reference.coverage is None:
        raise ProactorError(f"reference {reference.id!r} has no known window")
    start = reference.ready[0]
    return 1.0 - (start - turn) / (start - reference.coverage[0] + 1)


def metrics_of(sums: Array) -> dict[str, Array]:
    """Metrics from sums: [..., len(FIELDS)] float64 -> each [...]; undefined ones are NaN.

    reward: mean turn reward. values_right: share of the first fires that are right by similarity (tool, time,
    half of the values) whose required values are all right, undefined without any. utility: mean over
    dialogues (see utility.py). The others: `_rule_metrics`, exact under their names and by similarity as
    ``similarity_*``, and `_repeat_metrics`. null_share and width_0_share: references with an unknown window
    among all, and with a window of a single turn, where no turn can be won, among the known ones.
    """
    v = {name: sums[..., i] for i, name in enumerate(FIELDS)}
    return {
        "reward": ratio(v["reward_sum"], v["rewarded"]),
        "values_right": ratio(v["values_right_hits"], v["similarity_first_hits"], np.nan),
        **_rule_metrics(v),
        **{f"similarity_{key}": value for key, value in _rule_metrics(v, "similarity_").items()},
        "utility": ratio(v["utility_sum"], v["dialogues"]),
        **_repeat_metrics(v),
        "unparsed_share": ratio(v["unparsed"], v["decisions"]),
        "null_share": ratio(v["null_references"], v["references"] + v["null_references"]),
        "width_0_share": ratio(v["width_0_references"], v["references"]),
    }


def _rule_metrics(sums: Mapping[str, Array], prefix: str = "") -> dict[str, Array]:
    """Metrics that depend on what counts as right: by the sums BY_RULE whose names begin with ``prefix``.

    Fires with repeats: precision, recall (right fires / ready, hit references / references), window_f1. The
    others count each reference's first fire only; a repeat is false.

    first_fire_precision = first hits / first fires, first_fire_recall = first hits / references,
    first_fire_f1 their harmonic mean; on_time_f1: the same with early fires as misses (the strict reading).
    first_pt, first_ftr, first_rar, first_late_share: the rates of `_repeat_metrics` over first_actions, under
    the same identity. lead: mean ``s - u`` over first hits, in turns, positive when early.

    To decide by [INFERRED]: turns_saved = 100 saved_sum / dialogues, the turns that a hundred dialogues win
    against the logged human trigger; saved_each: their mean over the references saved; false_per_100 = 100
    (first_false + first_repeats) / dialogues, to which `tradeoff`, which knows the tools, adds fires before
    an assent (wrong_per_100).
    """
    v = {name: sums[prefix + name] for name in BY_RULE}
    references, dialogues = sums["references"], sums["dialogues"]
    wrong = v["first_false"] + v["first_repeats"]
    precision, recall = ratio(v["right"], sums["ready"]), ratio(v["hit"], references)
    return {
        "first_fire_f1": ratio(2 * v["first_hits"], v["first_fires"] + references),
        "first_fire_precision": ratio(v["first_hits"], v["first_fires"]),
        "first_fire_recall": ratio(v["first_hits"], references),
        "on_time_f1": ratio(2 * v["first_on_time"], v["first_fires"] + references),
        "on_time_recall": ratio(v["first_on_time"], references),
        "first_pt": ratio(v["first_hits"], v["first_actions"]),
        "first_ftr": ratio(wrong, v["first_actions"]),
        "first_rar": ratio(v["first_fires"], v["first_actions"]),
        "first_late_share": ratio(v["first_late"], v["first_actions"]),
        "turns_saved": ratio(100 * v["saved_sum"], dialogues),
        "saved_each": ratio(v["saved_sum"], v["saved"], np.nan),
        "false_per_100": ratio(100 * wrong, dialogues),
        "lead": ratio(v["first_lead"], v["first_hits"], np.nan),
        "precision": precision,
        "recall": recall,
        "window_f1": harmonic(precision, recall),
    }


def _repeat_metrics(v: Mapping[str, Array]) -> dict[str, Array]:
    """Metrics of the form that counts repeats, by similarity, and absolute PRI.

    lead_repeats: mean ``s - u`` over all early and on-time fires, in turns, positive when early.
    AC, MaxAC, Difference = MaxAC / AC - 1 [DERIVED]. PT, PT_w, FTR, RAR over N = actions (identity RAR = PT +
    FTR + late / N).
    """
    right = v["early"] + v["on_time"]
    ac, max_ac = ratio(v["ac_sum"], v["acted"]), ratio(v["max_ac_sum"], v["acted"])
    pt, ftr, rar = (ratio(x, v["actions"]) for x in (right, v["false"], v["ready"]))
    difference = ratio(max_ac, ac, np.nan) - 1.0
    ci, ti, pri = absolute_pri(ac, max_ac, difference, pt, ftr, rar)
    return {
        "lead_repeats": ratio(v["lead_sum"], right, np.nan),
        "pri": pri,
        "ci": ci,
        "ti": ti,
        "ac": ac,
        "max_ac": max_ac,
        "difference": difference,
        "pt": pt,
        "pt_weighted": ratio(v["on_time"] + v["early_weight"], v["actions"]),
        "ftr": ftr,
        "rar": rar,
        "late_share": ratio(v["late"], v["actions"]),
    }


def aggregate(contributions: Iterable[Contribution]) -> dict[str, float | None]:
    """Metrics of a corpus as plain numbers (None: undefined), and the counts behind them by FIELDS name."""
    total = matrix(contributions).sum(axis=0)
    result: dict[str, float | None] = {
        k: None if np.isnan(x) else float(x) for k, x in metrics_of(total).items()
    }
    return result | {name: float(x) for name, x in zip(FIELDS, total) if not name.endswith("_sum")}


def matrix(contributions: Iterable[Contribution]) -> Array:
    """The sums as [dialogues, len(FIELDS)] float64."""
    rows = [[c.sums[name] for name in FIELDS] for c in contributions]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FIELDS))


ALL = tuple(metrics_of(np.zeros(len(FIELDS))))
"""Names of all metrics."""
