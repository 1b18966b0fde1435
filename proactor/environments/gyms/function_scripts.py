"""Scripted players of FunctionGym beside its expert: a teacher without judgement, and lines for tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

from proactor.environments.gyms.function import NAMES, FunctionGym
from proactor.environments.gyms.function_expert import MANY, PROBES, FunctionExpert, rules_of
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.protocol import Call
from proactor.environments.scripted import Move, Script

FunctionGyms = FunctionGym | FunctionFamily
BOLDNESS = (0.1, 0.9)
"""Least and greatest chance that `Hasty` answers instead of probing; drawn for each task."""
KNOWN_PROBES = 4
"""How many of the expert's probes `Hasty` uses: those that tell most rules apart."""
PROBED = 9
"""Greatest number in a probe of a script that draws them."""


class Hasty(FunctionExpert):
    """Reckons like the expert but has no plan: it tosses a coin whether to probe or to answer, probes at
    random, and answers by any rule that fits what it saw. From its episodes a model learns how to play and to
    reckon, and when to do what from nobody.
    """

    def __init__(self, gym: FunctionGyms, task: str) -> None:
        super().__init__(rules_of(gym))
        self.drawn = random.Random(f"hasty/{task}")
        self.boldness = self.drawn.uniform(*BOLDNESS)

    def move(self) -> Move | None:
        """The next call; None when no rule is left, or nothing new can be done."""
        if self.test is None:
            return self._move(Call("search", "test"), "ask for the test case first")
        fresh = [place for place in self.best_probes()[:KNOWN_PROBES] if place not in self._probed]
        undecided = len(self.left) >= MANY  # too many rules to answer by
        if fresh and (undecided or self.drawn.random() >= self.boldness):
            return self._move(Call("action", spaced(PROBES[self.drawn.choice(fresh)])), "probe")
        answers = self.possible()
        if not answers:
            return None
        chosen = self.drawn.choices(list(answers), list(answers.values()))[0]
        return self._move(Call("answer", f"{chosen:.10g}"), "answer by a rule that fits")


class Guesser:
    """Never probes: answers what the training tasks' results most often are, one after the other."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._left = iter(answers)

    def move(self) -> Move | None:
        """The next guess; None when there is none left."""
        answer = next(self._left, None)
        return None if answer is None else Move(Call("answer", answer))

    def see(self, call: Call, observation: str) -> None:
        """Learns nothing."""


class Prober:
    """Never answers: asks for the test case, then probes as long as it may."""

    def __init__(self, task: str) -> None:
        self._drawn, self._turns = random.Random(f"prober/{task}"), 0

    def move(self) -> Move | None:
        """The next probe."""
        self._turns += 1
        return Move(Call("search", "test") if self._turns == 1 else a_probe(self._drawn))

    def see(self, call: Call, observation: str) -> None:
        """Learns nothing."""


class RandomPlayer:
    """Any call at any turn: a search, a probe, or a result that some training task has."""

    def __init__(self, answers: Sequence[str], task: str) -> None:
        self._drawn, self._answers = random.Random(f"random/{task}"), answers

    def move(self) -> Move | None:
        """The next call."""
        answer = Call("answer", self._drawn.choice(self._answers))
        return Move(self._drawn.choice([Call("search", "test"), a_probe(self._drawn), answer]))

    def see(self, call: Call, observation: str) -> None:
        """Learns nothing."""


def lines(gym: FunctionGyms) -> dict[str, Callable[[str], Script]]:
    """The scripts that stand beside trained agents, by name, each made for a task."""
    answers = cache(partial(common_answers, gym))
    return {
        "expert": lambda task: FunctionExpert(rules_of(gym)),
        "hasty": partial(Hasty, gym),
        "guess only": lambda task: Guesser(answers()),
        "never answer": Prober,
        "random": lambda task: RandomPlayer(answers(), task),
    }


def common_answers(gym: FunctionGyms) -> list[str]:
    """The results of the training tasks as answers, the most frequent first."""
    results = Counter(f"{gym.task(name).expected:.10g}" for name in gym.tasks("train"))
    return [answer for answer, _ in results.most_common()]


def a_probe(drawn: random.Random) -> Call:
    """Four numbers from 1 to `PROBED`."""
    return Call("action", spaced([drawn.randint(1, PROBED) for _ in NAMES]))


def spaced(numbers: Iterable[int]) -> str:
    """Numbers as the gym reads a probe."""
    return " ".join(map(str, numbers))
