"""User and item agents that learn from choices, in the style of AgentCF: the policy is a user's agent.

Of AgentCF's code (github.com/RUCAIBox/AgentCF): users and items are memories in words; the user's agent picks
one of two items, one that the user took and one drawn by popularity among the others, and says why; after a
wrong choice both memories are rewritten by a reflection, after a right one they are reinforced. There no
weights change and a model writes the memories. Here the policy's choice is rewarded, 1 where it is the item
that was taken, and a rule writes the memories (`Memory`): what was taken may be liked, what was left is not.
Users and items (`items`) are ours: a user likes one colour and one material, and takes items that have one of
them. Upstream goes over the same pairs twice and in the end ranks twenty items. Here each round is a new
pair, and the score is the share of rounds that were right.

The order of a pair is drawn for each round, from the task and the seed: a policy that goes by position is
right half of the time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from proactor.environments.calls import FINISH, INTERACT, plain
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.items import (
    COLOURS,
    MATERIALS,
    check_counts,
    check_task,
    popularity,
    task_names,
)
from proactor.environments.protocol import Call, Opening, Outcome

SOLVED = 0.75
"""Share of right choices from which a task counts as solved; ours."""
SYSTEM = (
    "You are the agent of a user who likes one colour and one material. In each turn you see your memory and "
    "two items with what is remembered of them, of which the user took one. Call interact_with_env with "
    "choice answer and the number of that item, 1 or 2, as content. You are told whether it was the one."
)

Words = tuple[str, str]
"""An item: its colour and material."""


@dataclass(slots=True)
class Memory:
    """What a user's agent remembers: words that may be ``liked``, and words that are not.

    A user takes what has a word that it likes, and what it left has none: so whatever was left is ruled out.
    """

    liked: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def reflect(self, taken: Words, left: Words) -> None:
        """Rewrite the memory after a round."""
        self.others += [word for word in left if word not in self.others]
        known = dict.fromkeys((*self.liked, *taken))
        self.liked = [word for word in known if word not in self.others]

    @property
    def text(self) -> str:
        """The memory in words."""
        return f"Likes: {_joined(self.liked)}\nNot: {_joined(self.others)}"


def _joined(words: Sequence[str]) -> str:
    return "-".join(["known", *words]) if words else "unknown"


@dataclass(frozen=True, slots=True)
class Round:
    """A pair as it is shown; ``taken``: the place of the item that the user took, 0 or 1."""

    items: tuple[Words, Words]
    taken: int


@dataclass(frozen=True, slots=True)
class AgentCFTask:
    """A user: the colour and the material that it likes."""

    id: str
    likes: Words


class AgentCFWorld:
    """One user. Its log says what it took: nobody is asked, so no verb involves the user."""

    user_verbs = frozenset[str]()

    def __init__(self, task: AgentCFTask, shelf: Shelf, rounds: int) -> None:
        self.task, self.shelf, self.rounds = task, shelf, rounds
        self.reset(0)

    def reset(self, seed: int) -> Opening:
        """Begin anew. ``seed`` draws the pairs and their order."""
        self._drawn = random.Random(f"{self.task.id}/{self.task.likes}/{seed}")
        self.memory, self.of_items = Memory(), dict[Words, str]()
        self.turns = self.right = self.reflections = self.reinforced = 0
        self.over = False
        self.round = self.shelf.draw(self._drawn, self.task.likes)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self._shown()}]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Judge a choice, rewrite the memories, show the next pair. Raises EpisodeOver after the end.

        What is no choice is a wrong one, after which nothing is rewritten. ``info``: ``reflections`` after
        wrong choices, ``reinforced`` after right ones; as ``score`` the share of all rounds right until now.
        """
        if self.over:
            raise EpisodeOver(f"agentcf {self.task.id}: the episode is over")
        self.turns += 1
        call = plain(call)
        chosen = chosen_place(call)
        right = chosen == self.round.taken
        if chosen is None:
            told = "Answer with 1 or 2."
        else:
            told = "Right." if right else "Wrong."
            self._rewrite(right)
        self.right += right
        finished = call.verb == FINISH
        last = self.turns >= self.rounds
        self.over = finished or last
        self.round = self.shelf.draw(self._drawn, self.task.likes)
        score = self.right / self.rounds
        info = {
            "score": score,
            "solved": score >= SOLVED,
            "reflections": self.reflections,
            "reinforced": self.reinforced,
        }
        said = told if self.over else f"{told}\n{self._shown()}"
        return Outcome(said, float(right), finished, self.over and not finished, info)

    def _rewrite(self, right: bool) -> None:
        taken, left = self.round.items[self.round.taken], self.round.items[1 - self.round.taken]
        self.memory.reflect(taken, left)
        self.of_items |= {taken: "taken", left: "left"}
        self.reinforced += right
        self.reflections += not right

    def _shown(self) -> str:
        lines = []
        for number, item in enumerate(self.round.items, start=1):
            lines.append(f"{number}: {'-'.join([self.of_items.get(item, 'new'), *item])}")
        return "\n".join([self.memory.text, *lines])


def chosen_place(call: Call) -> int | None:
    """The place, 0 or 1, of the item that an answer names by its number; what follows it is the explanation.
    None for another call.
    """
    number, _, _ = call.content.strip().replace(":", " ").partition(" ")
    return {"1": 0, "2": 1}.get(number) if call.verb == "answer" else None


class Shelf:
    """An item of each colour and material, with a ``popularity`` drawn by ``seed``."""

    def __init__(self, seed: int) -> None:
        self.items: list[Words] = list(itertools.product(COLOURS, MATERIALS))
        self.weights = popularity(random.Random(f"shelf/{seed}"), len(self.items))

    def draw(self, drawn: random.Random, likes: Words) -> Round:
        """A pair of what a user took and what it left, both drawn by popularity, in any order.

        Were one of them drawn evenly, popularity would tell which was taken.
        """
        taken, left = (
            self._one(drawn, [item for item in self.items if bool(set(item) & set(likes)) is wanted])
            for wanted in (True, False)
        )
        place = drawn.randrange(2)
        return Round((taken, left) if place == 0 else (left, taken), place)

    def _one(self, drawn: random.Random, items: Sequence[Words]) -> Words:
        weights = [self.weights[self.items.index(item)] for item in items]
        return drawn.choices(items, weights)[0]


class AgentCFGym:
    """Users drawn by ``seed``, each of whom chooses ``rounds`` times. Raises GymError for numbers that cannot
    be.
    """

    name = "agentcf"

    def __init__(self, train: int = 1000, test: int = 100, seed: int = 0, rounds: int = 6) -> None:
        check_counts(self.name, {"train": (train, 1), "test": (test, 0), "rounds": (rounds, 1)})
        self.max_turns = rounds
        self._counts, self._seed, self._shelf = (train, test), seed, Shelf(seed)

    def tasks(self, split: str) -> Sequence[str]:
        """Names of ``train``, ``test`` or ``all``. Raises GymError for another split."""
        return task_names(self.name, *self._counts, split)

    def task(self, name: str) -> AgentCFTask:
        """A task, with what the agent is not told. Raises GymError for one that there is not."""
        check_task(self.name, *self._counts, name)
        drawn = random.Random(f"{self.name}/{self._seed}/{name}")
        return AgentCFTask(name, (drawn.choice(COLOURS), drawn.choice(MATERIALS)))

    def make(self, task: str) -> AgentCFWorld:
        """A world of a task."""
        return AgentCFWorld(self.task(task), self._shelf, self.max_turns)
