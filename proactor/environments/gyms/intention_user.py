"""A user for IntentionGym that needs no model: it knows its task's details and answers questions on them.

A question is matched with the words of each detail's description, inquiry and options, all from UserRL's
data. The detail that explains most of the question is taken, its words are removed, and so on while the rest
still explains enough. Words count by how few of the task's details contain them; one that no detail contains
counts most, so that of a question about something else little is explained. `SHARE` was chosen on 250 of
UserRL's tasks; ``python -m bench.rule_users`` prints what the user gets right and wrong.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

STEM = 5
"""Letters of a word that count: endings do not."""
SHARE = 0.2
"""How much of a question's weight a detail has to explain."""
REFUSAL = (
    "I am not sure about that. What I need is help with my request: what would you like to know about it?"
)

_COMMON = frozenset(
    """a about also am an and any are as at be been being but by can consider could did do does especially
    for from had has have help how i if in interested into is it its just kind know let like looking
    may me might more most my need of on one or other our out particular please prefer preference
    provide regarding related should so some specific such tell than that the their them there these
    they this to type up us want was we were what when where which who will with would you your""".split()
)


@dataclass(frozen=True, slots=True)
class Detail:
    """What a task left out: how much it matters (1 to 3), a question that asks for it, possible answers."""

    description: str
    importance: int
    inquiry: str
    options: tuple[str, ...]


def stems(text: str) -> set[str]:
    """The words of a text that tell something, without endings."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {word[:STEM] for word in words if word not in _COMMON and len(word) > 1}


class RuleUser:
    """The user of one task. ``seed`` draws which option of each detail the user wants."""

    def __init__(self, task: str, details: Sequence[Detail], seed: int) -> None:
        self.details = details
        self.wishes = [
            random.Random(f"{seed}/{task}/{place}").choice(detail.options)
            for place, detail in enumerate(details)
        ]
        self._stems = [stems(" ".join((d.description, d.inquiry, *d.options))) for d in details]

    def asked(self, question: str) -> list[int]:
        """Places of the details that a question asks about, in their order."""
        left = stems(question)
        weights = {stem: self._weight(stem) for stem in left}
        total = sum(weights.values())
        found: list[int] = []
        while left and len(found) < len(self.details):
            explained = [
                -1.0 if place in found else sum(weights[stem] for stem in left & known)
                for place, known in enumerate(self._stems)
            ]
            best = max(range(len(explained)), key=explained.__getitem__)
            if explained[best] < SHARE * total or explained[best] <= 0:
                break
            found.append(best)
            left = left - self._stems[best]
        return sorted(found)

    def answer(self, asked: Sequence[int]) -> str:
        """What the user says to a question about these details."""
        said = [f"{self.details[place].description}: {self.wishes[place]}." for place in asked]
        return " ".join(said) or REFUSAL

    def _weight(self, stem: str) -> float:
        known = sum(stem in words for words in self._stems)
        return math.log((len(self.details) + 1) / max(known, 1))
