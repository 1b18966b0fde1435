"""The evaluated dialogues for the page: each with its timeline, outcomes and gain, to be searched and sorted.

The page holds all of them drawn, as one compressed block; its script unpacks the block and shows those that a
reader asks for. A first page of them stands in the HTML itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report.timeline import MISSED, WRONG_VALUE, ClassifiedReplay, Timeline, timeline
from proactor.scoring.metrics import Contribution

FIRST_PAGE = 10
"""Dialogues in the HTML itself, for a page without scripts."""

OUTCOMES = {
    "on_time": "right, on time",
    "early": "right, early",
    "late": "late",
    WRONG_VALUE: "wrong value",
    MISSED: "missed",
    "false": "false",
    "repeat": "repeat",
}
"""What a reader can ask for, in words. A reference that only got wrong values is missed as well."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A dialogue as played by both systems.

    ``before``, ``after``: its first-fire F1. ``gain``: (change of that, change of the mean turn reward).
    ``outcomes``: (tool, outcome) by system, each once, with ``counts`` of the outcomes after.
    """

    timeline: Timeline
    before: float
    after: float
    gain: tuple[float, float]
    outcomes: Mapping[str, list[tuple[str, str]]]
    counts: Mapping[str, int]

    @property
    def text(self) -> str:
        """What a search looks through, in lower case: id, domain, what was said, called for and proposed."""
        dialogue = self.timeline.dialogue
        parts = [dialogue.id, dialogue.domain or "", *(turn.text for turn in dialogue.turns)]
        for entry in self.timeline.entries:
            parts += [entry.name, *entry.params.values()]
        for row in self.timeline.rows:
            for action in (action for actions in row.proposals.values() for action in actions):
                parts += [action.name, *(value.text for value in action.values)]
        return "\n".join(dict.fromkeys(parts)).lower()

    @property
    def row(self) -> dict[str, Any]:
        """What the page's script searches and sorts by."""
        return {
            "text": self.text,
            "tools": sorted({tool for pairs in self.outcomes.values() for tool, _ in pairs}),
            "outcomes": {s: [f"{kind} {tool}" for tool, kind in pairs] for s, pairs in self.outcomes.items()},
            "gain": self.gain,
            "after": self.after,
        }


def talks(
    dialogues: Sequence[Dialogue],
    before: Evaluation,
    after: Evaluation,
    replays: Mapping[str, Mapping[str, ClassifiedReplay]],
    *,
    one_reward: bool = True,
) -> list[Talk]:
    """The dialogues that both systems played, the greatest change of first-fire F1 first, then the worst.

    ``replays``: those of ``before`` and ``after``, classified, by dialogue id. ``one_reward``: whether both
    turn rewards are one measure; if not, they count for no gain.
    """
    old, new = ({c.dialogue: c for c in e.contributions} for e in (before, after))
    played = [{r.dialogue_id: r for r in e.replays} for e in (before, after)]
    scored = old.keys() & new.keys() & played[0].keys() & played[1].keys()
    found = []
    for dialogue in sorted((d for d in dialogues if d.id in scored), key=lambda d: d.id):
        name = dialogue.id
        outcomes = {s: list(replays[s][name].outcomes(dialogue)) for s in ("before", "after")}
        one, other = _f1(old[name]), _f1(new[name])
        reward = _mean_reward(new[name]) - _mean_reward(old[name]) if one_reward else 0.0
        found.append(
            Talk(
                timeline(dialogue, {"before": played[0][name], "after": played[1][name]}, after.rule),
                one,
                other,
                (other - one, reward),
                {s: sorted(set(pairs)) for s, pairs in outcomes.items()},
                Counter(kind for _, kind in outcomes["after"]),
            )
        )
    return sorted(found, key=lambda t: (-abs(t.gain[0]), t.after, -abs(t.gain[1])))


def tools_of(talks: Iterable[Talk]) -> list[str]:
    """The tools that are called for or proposed, sorted."""
    return sorted({tool for talk in talks for pairs in talk.outcomes.values() for tool, _ in pairs})


def _f1(contribution: Contribution) -> float:
    """First-fire F1 of one dialogue; 1 when nothing was called for and nothing fired."""
    s = contribution.sums
    denominator = s["first_fires"] + s["references"]
    return 2 * s["first_hits"] / denominator if denominator else 1.0


def _mean_reward(contribution: Contribution) -> float:
    return contribution.sums["reward_sum"] / max(contribution.sums["rewarded"], 1.0)
