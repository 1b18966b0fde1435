"""What became of the actions that dialogues call for, and which dialogues are worth showing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report.comparison import Sides
from proactor.report.timeline import MASKED, MISSED, Played, Timeline, play, timeline
from proactor.scoring.metrics import Contribution

OUTCOMES = ("on_time", "early", "late", MISSED)


@dataclass(frozen=True, slots=True)
class Group:
    """Timelines under one heading."""

    title: str
    help: str
    items: list[tuple[Timeline, float, float]]


def played(dialogues: Sequence[Dialogue], evaluation: Evaluation) -> dict[str, Played]:
    replays = {r.dialogue_id: r for r in evaluation.replays}
    return {d.id: play(d, replays[d.id].actions if d.id in replays else {}) for d in dialogues}


def anatomy(name: str, dialogues: Sequence[Dialogue], played: Mapping[str, Played]) -> dict[str, Any]:
    """What became of each reference, as shares, and the fires that belonged to none."""
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        counts.update(played[dialogue.id].counts(dialogue))
    total = sum(counts[kind] for kind in OUTCOMES)
    parts = [(kind, counts[kind], counts[kind] / total if total else 0.0) for kind in OUTCOMES]
    return {
        "name": name,
        "parts": parts,
        "total": total,
        **{k: counts[k] for k in ("false", "repeat", MASKED)},
    }


def first_fires(dialogues: Sequence[Dialogue], played: Mapping[str, Played]) -> Counter[int]:
    """Turns from the opening of a reference's window to its first fire."""
    return Counter(
        played[d.id].first[r.id][0] - r.ready[0]
        for d in dialogues
        for r in d.references
        if r.ready and r.id in played[d.id].first
    )


def _f1(contribution: Contribution) -> float:
    """First-fire F1 of one dialogue; 1 when nothing was called for and nothing was fired."""
    s = contribution.sums
    below = s["first_fires"] + s["references"]
    return 2 * s["first_hits"] / below if below else 1.0


def groups(
    dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation, shown: int, sides: Sides
) -> list[Group]:
    """The dialogues that gained and lost most, then the worst and the best of the rest; none appears
    twice.
    """
    old = {c.dialogue: (_f1(c), _mean(c)) for c in before.contributions}
    new = {c.dialogue: (_f1(c), _mean(c)) for c in after.contributions}
    replays = [{r.dialogue_id: r for r in e.replays} for e in (before, after)]
    scored = old.keys() & new.keys() & replays[0].keys() & replays[1].keys()
    known = {d.id: d for d in dialogues if d.id in scored}

    def gain(name: str) -> tuple[float, float, str]:
        return new[name][0] - old[name][0], new[name][1] - old[name][1], name

    def quality(name: str) -> tuple[float, float, str]:
        return *new[name], name

    left = sorted(known)
    wanted = (
        (
            "Gained most",
            f"first-fire F1 {sides.after_phrase} minus {sides.before}",
            sorted(left, key=gain, reverse=True),
            gain,
            1,
        ),
        ("Lost most", f"what it cost, against {sides.before}", sorted(left, key=gain), gain, -1),
        (f"Worst {sides.after_phrase}", "what it still gets wrong", sorted(left, key=quality), None, 0),
        (
            f"Best {sides.after_phrase}",
            "what it gets right",
            sorted(left, key=quality, reverse=True),
            None,
            0,
        ),
    )
    found, used = [], set[str]()
    for title, help, order, measure, sign in wanted:
        picked = [n for n in order if n not in used and (measure is None or sign * measure(n)[0] > 0)][:shown]
        used.update(picked)
        items = [
            (timeline(known[n], {"before": replays[0][n], "after": replays[1][n]}), old[n][0], new[n][0])
            for n in picked
        ]
        if items:
            found.append(Group(title, help, items))
    return found


def _mean(contribution: Contribution) -> float:
    return contribution.sums["reward_sum"] / max(contribution.sums["rewarded"], 1.0)
