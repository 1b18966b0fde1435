"""Outcomes of the actions that dialogues call for, counted over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report.timeline import MASKED, MISSED, ClassifiedReplay, classify_replay

OUTCOMES = ("on_time", "early", "late", MISSED)


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
