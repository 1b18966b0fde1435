"""Scripted user agents for `agentcf`: an expert, a teacher that doubts it, one by position, one at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from proactor.environments.protocol import Call, Opening
from proactor.environments.scripted import Move, Script


class AgentCFExpert:
    """Goes by the memory: takes the item with more words that may be liked, then the one with fewer that are
    not; the first where that says nothing.
    """

    def __init__(self) -> None:
        self.shown = ""

    def read(self, opening: Opening) -> None:
        """Take in the first pair."""
        self.shown = str(opening.messages[-1]["content"])

    def move(self) -> Move | None:
        """The next choice."""
        return self._move(self.best())

    def see(self, call: Call, observation: str) -> None:
        """Take in the next pair."""
        self.shown = observation

    def best(self) -> int:
        """The place of the better item."""
        return max(range(2), key=self._worth)

    def _move(self, place: int) -> Move:
        said = self._said()
        known = f"likes {said['Likes']}, not {said['Not']}"
        return Move(Call("answer", str(place + 1)), known, f"{said['1']} or {said['2']}", "go by the memory")

    def _worth(self, place: int) -> tuple[int, int]:
        said = self._said()
        words, liked, others = (said[name].split("-")[1:] for name in (str(place + 1), "Likes", "Not"))
        return sum(word in liked for word in words), -sum(word in others for word in words)

    def _said(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.shown.splitlines() if ": " in line)


class AgentCFHasty(AgentCFExpert):
    """Goes by the memory in some turns and tosses a coin in the others; how often is drawn for each task."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.drawn = random.Random(f"hasty/{task}")
        self.doubt = self.drawn.uniform(0.2, 0.8)

    def move(self) -> Move | None:
        """The next choice."""
        doubts = self.drawn.random() < self.doubt
        return self._move(self.drawn.randrange(2) if doubts else self.best())


class Positional:
    """Always the first item."""

    def move(self) -> Move | None:
        """The first."""
        return Move(Call("answer", "1"))

    def see(self, call: Call, observation: str) -> None:
        """Learns nothing."""


class AgentCFRandom(Positional):
    """Either item."""

    def __init__(self, task: str) -> None:
        self._drawn = random.Random(f"random/{task}")

    def move(self) -> Move | None:
        """One of the two."""
        return Move(Call("answer", self._drawn.choice("12")))


PLAYERS: Mapping[str, Callable[[str], Script]] = {
    "expert": lambda task: AgentCFExpert(),
    "hasty": AgentCFHasty,
    "first": lambda task: Positional(),
    "random": AgentCFRandom,
}
"""The scripts by name, each made for a task."""
