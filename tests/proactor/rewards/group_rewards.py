"""Rewards that give what a test wants, and a group of answers to try them on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from proactor.dialogue import Reference
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.parse import render
from proactor.rewards import GroupScores
from proactor.rewards.schedule import TrainingProgress
from tests.proactor.dialogues import ready, users

BOOK = Reference(id="b", name="book", params={"day": "Monday", "time": "9"}, coverage=(2, 6), ready=(4, 5))
DIALOGUE = users(7, BOOK)
CATALOG = Catalog(tools=(Tool(name="book", parameters=(Parameter(name="day"), Parameter(name="time"))),))
FULL = render((ready("book", day="Monday", time="9"),))
HALF = render((ready("book", day="Monday"),))
WAIT = "[]"


def group(*texts: str, turn: int = 4) -> Candidates:
    """Answers to one decision."""
    return Candidates(DIALOGUE, turn, texts or (FULL, HALF, WAIT), CATALOG)


class Given:
    """A source of a mixture that gives the numbers it was made with, and remembers how often it was asked."""

    def __init__(
        self, *rows: dict[str, float] | None, costly: bool = False, concurrent: bool = False
    ) -> None:
        self.rows, self.costly, self.concurrent = rows, costly, concurrent
        self.counters: Counter[str] = Counter()
        self.bound: tuple[Any, ...] = ()

    def bind(self, engine: Any, catalog: Catalog) -> None:
        self.bound = (engine, catalog)

    async def score_all(self, groups: Sequence[Candidates]) -> list[GroupScores]:
        self.counters["asked"] += len(groups)
        if any(row is None for row in self.rows):
            return [None] * len(groups)
        return [[dict(row) for row in self.rows if row is not None] for _ in groups]


class ByText:
    """A `GroupReward` by a function of one answer; ``keep`` says which groups are not dropped."""

    def __init__(
        self,
        value: Callable[[str], float],
        keep: Callable[[Candidates], bool] = lambda candidates: True,
        concurrent: bool = True,
    ) -> None:
        self.value, self.keep, self.concurrent = value, keep, concurrent
        self.judged = ("judge",)
        self.counters: Counter[str] = Counter()
        self.seen_progress: list[TrainingProgress] = []

    def bind(self, engine: Any, catalog: Catalog) -> None: ...

    def coefficients(self, progress: TrainingProgress) -> dict[str, float]:
        self.seen_progress.append(progress)
        return {"judge": 1.0}

    async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
        self.counters["groups"] += 1
        if not self.keep(candidates):
            self.counters["lost"] += 1
            return None
        return [{"reward": self.value(text), "judge": self.value(text)} for text in candidates.texts]

    async def score_all(self, groups: Sequence[Candidates], progress: TrainingProgress) -> list[GroupScores]:
        return [await self.score(candidates, progress) for candidates in groups]


def length(text: str) -> float:
    """A value with spread on any text."""
    return (len(text) % 5) / 4


def first_letter_even(candidates: Candidates) -> bool:
    """Half of all dialogues, whatever the order."""
    return sum(candidates.dialogue.id.encode()) % 2 == 0


half_dropped = ByText(length, first_letter_even)
"""Named in configs."""
all_dropped = ByText(length, lambda candidates: False)


def in_tens(prompts: list[Any], completions: list[str], turn: list[int], **columns: Any) -> list[float]:
    """A function of one's own on another scale: 0 to 10."""
    return [10.0 * length(text) for text in completions]
