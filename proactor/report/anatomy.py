"""Outcomes of the actions that dialogues call for, and the choice of dialogues to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report.comparison import Sides
from proactor.report.timeline import MASKED, MISSED, ClassifiedReplay, Timeline, classify_replay, timeline
from proactor.scoring.metrics import Contribution

OUTCOMES = ("on_time", "early", "late", MISSED)


@dataclass(frozen=True, slots=True)
class TimelineGroup:
    """Timelines under one heading, each with the dialogue's first-fire F1 before and after."""

    title: str
    help: str
    items: list[tuple[Timeline, float, float]]


def classify_replays(dialogues: Sequence[Dialogue], evaluation: Evaluation) -> dict[str, ClassifiedReplay]:
    """Dialogue id -> the system's replay, classified."""
    replays = {r.dialogue_id: r for r in evaluation.replays}
    return {
        d.id: classify_replay(d, replays[d.id].actions if d.id in replays else {}, evaluation.rule)
        for d in dialogues
    }


def anatomy(
    name: str, dialogues: Sequence[Dialogue], replays: Mapping[str, ClassifiedReplay]
) -> dict[str, Any]:
    """One system's outcomes of references as (kind, count, share), and its fires without a reference."""
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        counts.update(replays[dialogue.id].counts(dialogue))
    total = sum(counts[kind] for kind in OUTCOMES)
    parts = [(kind, counts[kind], counts[kind] / total if total else 0.0) for kind in OUTCOMES]
    return {
        "name": name,
        "parts": parts,
        "total": total,
        **{k: counts[k] for k in ("false", "repeat", MASKED)},
    }


def first_fires(dialogues: Sequence[Dialogue], replays: Mapping[str, ClassifiedReplay]) -> Counter[int]:
    """References by the turns from the opening of their window to their first fire."""
    return Counter(
        replays[d.id].first[r.id][0] - r.ready[0]
        for d in dialogues
        for r in d.references
        if r.ready and r.id in replays[d.id].first
    )


def _f1(contribution: Contribution) -> float:
    """First-fire F1 of one dialogue; 1 when nothing was called for and nothing fired."""
    s = contribution.sums
    denominator = s["first_fires"] + s["references"]
    return 2 * s["first_hits"] / denominator if denominator else 1.0


def groups(
    dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation, shown: int, sides: Sides
) -> list[TimelineGroup]:
    """The dialogues that gained and lost most, then the worst and best of the rest; none appears twice."""
    old = {c.dialogue: (_f1(c), _mean_reward(c)) for c in before.contributions}
    new = {c.dialogue: (_f1(c), _mean_reward(c)) for c in after.contributions}
    replays = [{r.dialogue_id: r for r in e.replays} for e in (before, after)]
    scored = old.keys() & new.keys() & replays[0].keys() & replays[1].keys()
    known = {d.id: d for d in dialogues if d.id in scored}

    def gain(name: str) -> tuple[float, float, str]:
        return new[name][0] - old[name][0], new[name][1] - old[name][1], name

    def quality(name: str) -> tuple[float, float, str]:
        return *new[name], name

    names = sorted(known)
    gainers = [n for n in sorted(names, key=gain, reverse=True) if gain(n)[0] > 0]
    losers = [n for n in sorted(names, key=gain) if gain(n)[0] < 0]
    worst, best = sorted(names, key=quality), sorted(names, key=quality, reverse=True)
    candidates = (
        ("Gained most", f"first-fire F1 {sides.after_phrase} minus {sides.before}", gainers),
        ("Lost most", f"what it cost, against {sides.before}", losers),
        (f"Worst {sides.after_phrase}", "what it still gets wrong", worst),
        (f"Best {sides.after_phrase}", "what it gets right", best),
    )
    chosen, used = [], set[str]()
    for title, help, order in candidates:
        picked = [n for n in order if n not in used][:shown]
        used.update(picked)
        items = [
            (
                timeline(known[n], {"before": replays[0][n], "after": replays[1][n]}, after.rule),
                old[n][0],
                new[n][0],
            )
            for n in picked
        ]
        if items:
            chosen.append(TimelineGroup(title, help, items))
    return chosen


def _mean_reward(contribution: Contribution) -> float:
    return contribution.sums["reward_sum"] / max(contribution.sums["rewarded"], 1.0)
