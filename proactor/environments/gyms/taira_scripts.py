"""Scripted managers for `taira`: an expert, a teacher without judgement, and one that plans at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from proactor.environments.gyms.items import COLOURS, KINDS, MATERIALS, OCCASIONS
from proactor.environments.gyms.taira import (
    ANYTHING,
    INTERACTOR,
    INTERPRETER,
    PLANNER,
    RETRIEVER,
    SEARCHER,
)
from proactor.environments.protocol import Call, Opening
from proactor.environments.scripted import Move, Script

FOUND = "Found: "


def plan(*steps: str) -> Call:
    """A plan as the gym reads it."""
    return Call("action", " > ".join(steps))


class TairaExpert:
    """Reads the request, searches where the material is not told, retrieves a list for each kind, answers."""

    def __init__(self) -> None:
        self.kinds: tuple[str, ...] = ()
        self.colour = self.material = self.occasion = ""

    def read(self, opening: Opening) -> None:
        """Take in the request; of one that is open two kinds."""
        said = dict(line.split(": ", 1) for line in str(opening.messages[-1]["content"]).splitlines())
        wanted = said["Wanted"]
        self.kinds = KINDS[:2] if wanted == ANYTHING else tuple(wanted.split(" and "))
        self.colour = said["Colour"]
        self.material, self.occasion = said.get("Material", ""), said.get("Occasion", "")

    def move(self) -> Move | None:
        """The next plan."""
        if not self.material:
            return self._move(plan(f"{SEARCHER} {self.occasion}", PLANNER), "occasion: search, plan again")
        return self._move(self.answer(self.kinds, self.material), "a list for each kind, then answer")

    def answer(self, kinds: Sequence[str], material: str) -> Call:
        """The plan that retrieves these kinds and answers; ``material`` "": left out."""
        words = [self.colour, *filter(None, [material])]
        return plan(*(f"{RETRIEVER} {'-'.join([kind, *words])}" for kind in kinds), INTERACTOR)

    def see(self, call: Call, observation: str) -> None:
        """Take in the material that was found."""
        found = [line for line in observation.splitlines() if line.startswith(FOUND)]
        if found:
            self.material = found[-1].removeprefix(FOUND)

    def _move(self, call: Call, why: str) -> Move:
        known = f"{'-'.join(self.kinds)}, {self.colour}, {self.material or 'no material'}"
        return Move(call, known, self.occasion or "none", why)


class TairaHasty(TairaExpert):
    """Writes plans as the expert does, and tosses coins: whether to search, and how many kinds to list. Of a
    material that it did not look up it takes any. It teaches how plans are written, and not which is good.
    """

    def __init__(self, task: str) -> None:
        super().__init__()
        self.drawn = random.Random(f"hasty/{task}")
        self.searched = False

    def move(self) -> Move | None:
        """The next plan."""
        if self.occasion and not self.searched and self.drawn.random() < 0.5:
            self.searched = True
            return self._move(plan(f"{SEARCHER} {self.occasion}", PLANNER), "search")
        kinds = self.kinds[: self.drawn.randint(1, len(self.kinds))]
        return self._move(self.answer(kinds, self.material or self.drawn.choice(MATERIALS)), "answer")


class TairaRandom:
    """Plans of one to three steps, with any words, that end as plans must."""

    def __init__(self, task: str) -> None:
        self._drawn = random.Random(f"random/{task}")

    def move(self) -> Move | None:
        """The next plan."""
        steps = [self._step() for _ in range(self._drawn.randint(1, 3))]
        return Move(plan(*steps, self._drawn.choice((PLANNER, INTERACTOR))))

    def _step(self) -> str:
        pick = self._drawn.choice
        words = "-".join((pick(KINDS), pick(COLOURS), pick(MATERIALS)))
        return pick((f"{SEARCHER} {pick(OCCASIONS)}", f"{RETRIEVER} {words}", INTERPRETER))

    def see(self, call: Call, observation: str) -> None:
        """Learns nothing."""


PLAYERS: Mapping[str, Callable[[str], Script]] = {
    "expert": lambda task: TairaExpert(),
    "hasty": TairaHasty,
    "random": TairaRandom,
}
"""The scripts by name, each made for a task."""
