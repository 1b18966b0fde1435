"""Recommendation by plans, in the style of TAIRA: the policy is the manager, which plans for other agents.

Of TAIRA's code (github.com/Alcein/TAIRA): a plan is a row of subtasks for Searcher, ItemRetriever,
Interpreter, Planner and Interactor; it must end in Planner (plan again, with what was found) or Interactor
(answer the user); ten calls of agents at most, else the task fails; lists of ten items, scored as
`taira_scores` has it; a library of thought patterns, one for each class of requests. There no weights change:
as an environment it is ours, and so are the items (`items`), the agents, which are rules, and the judge.

A request names kinds and a colour, and either a material or an occasion; which material the user takes for an
occasion only the Searcher finds. The ItemRetriever's list begins with the items of its kind, of these with
those of the material, of these with those of the colour. The judge gives 2 for an item with all that was
wanted, 1 for one in another colour, 0 else; a list is valid where its kind is wanted and in no list before.

    reward = ndcg_weight NDCG + hit_weight hit - call_price calls / 10, at the end; 0 for a failure
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proactor.environments.calls import FINISH, INTERACT, plain
from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.items import (
    COLOURS,
    KINDS,
    MATERIALS,
    OCCASIONS,
    Item,
    catalogue,
    check_counts,
    check_task,
    draw_habits,
    task_names,
)
from proactor.environments.gyms.taira_scores import LENGTH, OPEN, Scores, score_lists
from proactor.environments.protocol import Call, Opening, Outcome

MOST_CALLS = 10
"""Agents that may be called in an episode (upstream)."""
SEARCHER, RETRIEVER, INTERPRETER = "Searcher", "ItemRetriever", "Interpreter"
PLANNER, INTERACTOR = "Planner", "Interactor"
AGENTS = (SEARCHER, RETRIEVER, INTERPRETER, PLANNER, INTERACTOR)
ANYTHING = "anything"
"""Kinds of a request that leaves them open."""

SYSTEM = (
    "You manage agents that recommend items. Call interact_with_env with choice action and a plan as "
    f"content: steps with > between them, of which the last is {PLANNER} or {INTERACTOR}.\n"
    f"{SEARCHER} OCCASION: finds the material that the user takes for it.\n"
    f"{RETRIEVER} KIND-COLOUR-MATERIAL: makes a list of items, of one kind; words may be left out.\n"
    f"{INTERPRETER}: adds what was found to the retrievals after it in the plan.\n"
    f"{PLANNER}: tells you what came of it; you plan again.\n"
    f"{INTERACTOR}: gives the user the lists.\n"
    "Patterns:\n"
    "material known: retrieve, answer.\n"
    "occasion: search, plan again, retrieve with what was found, answer.\n"
    "several kinds, or anything: a list for each of two kinds.\n"
    f"More than {MOST_CALLS} steps in all, or an answer without a fitting item, is a failure."
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a user wants. ``material`` is told only where ``occasion`` is empty. ``kinds``: all where open."""

    kinds: tuple[str, ...]
    colour: str
    material: str
    occasion: str
    open: bool

    @property
    def lists(self) -> int:
        """How many lists are wanted; `OPEN` where that is left open."""
        return OPEN if self.open else len(self.kinds)

    @property
    def text(self) -> str:
        """What the user says."""
        kinds = ANYTHING if self.open else " and ".join(self.kinds)
        need = f"Occasion: {self.occasion}" if self.occasion else f"Material: {self.material}"
        return f"Wanted: {kinds}\nColour: {self.colour}\n{need}"

    def judge(self, item: Item) -> Literal[0, 1, 2]:
        """The score of an item."""
        if item.kind not in self.kinds or item.material != self.material:
            return 0
        return 2 if item.colour == self.colour else 1


@dataclass(frozen=True, slots=True)
class TairaTask:
    """A request, and the material that its user takes for each occasion."""

    id: str
    request: Request
    habits: dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """A subtask of a plan: an agent, and its words."""

    agent: str
    words: tuple[str, ...] = ()


class PlanError(ValueError):
    """A plan that is not carried out. One line, which the manager reads."""


def read_plan(text: str) -> list[Step]:
    """The steps of a plan. Raises PlanError for one without steps or with an unknown agent or word, and for
    one that ends in another agent than Planner or Interactor.
    """
    steps = []
    for part in filter(None, (piece.strip() for piece in text.split(">"))):
        agent, _, rest = part.partition(" ")
        if agent not in AGENTS:
            raise PlanError(f"no agent {agent[:30]!r}: there are {', '.join(AGENTS)}")
        words = tuple(rest.replace("-", " ").split())
        known = {SEARCHER: OCCASIONS, RETRIEVER: (*KINDS, *COLOURS, *MATERIALS)}.get(agent, ())
        if unknown := [word for word in words if word not in known]:
            raise PlanError(f"{agent} does not know {unknown[0][:30]!r}")
        if agent == SEARCHER and len(words) != 1:
            raise PlanError(f"{agent} needs one occasion: {', '.join(OCCASIONS)}")
        steps.append(Step(agent, words))
    if not steps:
        raise PlanError("a plan has steps")
    if steps[-1].agent not in (PLANNER, INTERACTOR):
        raise PlanError(f"a plan ends in {PLANNER} or {INTERACTOR}, not in {steps[-1].agent}")
    if any(step.agent in (PLANNER, INTERACTOR) for step in steps[:-1]):
        raise PlanError(f"{PLANNER} and {INTERACTOR} end a plan")
    return steps


def retrieve(items: Sequence[Item], words: Sequence[str]) -> list[Item]:
    """The ten items that fit best: kind first, then material, then colour, then the lower number."""

    def worth(item: Item) -> tuple[bool, bool, bool]:
        return item.kind in words, item.material in words, item.colour in words

    return sorted(items, key=worth, reverse=True)[:LENGTH]


@dataclass(frozen=True, slots=True)
class Pay:
    """Weights of the reward."""

    ndcg: float
    hit: float
    call: float


class TairaWorld:
    """One request. The user is a rule, and nobody is asked before the end: no verb involves it."""

    user_verbs = frozenset[str]()

    def __init__(self, task: TairaTask, items: tuple[Item, ...], max_turns: int, pay: Pay) -> None:
        self.task, self.items, self.max_turns, self.pay = task, items, max_turns, pay
        self.reset(0)

    def reset(self, seed: int) -> Opening:
        """Begin anew; nothing here is drawn."""
        self.turns = self.calls = self.refused = 0
        self.over = False
        self.lists: list[list[Item]] = []
        said = self.task.request.text
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Carry out a plan. Raises EpisodeOver after the end.

        ``info``: the scores of `taira_scores`, ``calls`` of agents, plans that were ``refused``; all scores
        are 0 before the user is answered.
        """
        if self.over:
            raise EpisodeOver(f"taira {self.task.id}: the episode is over")
        self.turns += 1
        call = plain(call)
        if call.verb == FINISH:
            return self._end("Nothing was recommended.")
        if call.verb != "action":
            return self._go_on("Call with choice action and a plan.")
        try:
            steps = read_plan(call.content)
        except PlanError as error:
            self.refused += 1
            return self._go_on(f"No plan: {error}.")
        if self.calls + len(steps) > MOST_CALLS:
            self.calls = MOST_CALLS
            return self._end(f"More than {MOST_CALLS} steps: the task has failed.")
        self.calls += len(steps)
        told = self._carry_out(steps)
        if steps[-1].agent == PLANNER:
            return self._go_on("\n".join(told) or "Nothing was done.")
        return self._end("The user has the lists.", self._scores())

    def _carry_out(self, steps: Sequence[Step]) -> list[str]:
        """What the agents of a plan say."""
        found: list[str] = []
        added: list[str] = []
        told = []
        for step in steps:
            if step.agent == SEARCHER:
                found.append(self.task.habits[step.words[0]])
                told.append(f"Found: {found[-1]}")
            elif step.agent == INTERPRETER:
                added = list(found)
            elif step.agent == RETRIEVER:
                self.lists.append(retrieve(self.items, [*step.words, *added]))
                told.append(f"Listed: {'-'.join([*step.words, *added])}")
        return told

    def _scores(self) -> Scores:
        request, seen, valid = self.task.request, set[str](), []
        for one in self.lists:
            kinds = [item.kind for item in one]
            kind = max(kinds, key=kinds.count)
            valid.append(kind in request.kinds and kind not in seen)
            seen.add(kind)
        judged = [[request.judge(item) for item in one] for one in self.lists]
        return score_lists(judged, valid, request.lists)

    def _go_on(self, told: str) -> Outcome:
        if self.turns >= self.max_turns:
            self.over = True
            return Outcome(told, truncated=True, info=self._info(Scores(0.0, 0.0, 0.0, False), 0.0))
        return Outcome(told, info=self._info(Scores(0.0, 0.0, 0.0, False), 0.0))

    def _end(self, told: str, scores: Scores | None = None) -> Outcome:
        self.over = True
        scores = scores or Scores(0.0, 0.0, 0.0, False)
        gained = self.pay.ndcg * scores.ndcg + self.pay.hit * scores.hit
        reward = max(0.0, gained - self.pay.call * self.calls / MOST_CALLS) if scores.success else 0.0
        return Outcome(told, reward, terminated=True, info=self._info(scores, reward))

    def _info(self, scores: Scores, reward: float) -> dict[str, float | int | bool]:
        return {
            "score": reward,
            "solved": scores.success,
            "hit": scores.hit,
            "ndcg": scores.ndcg,
            "mrr": scores.mrr,
            "calls": self.calls,
            "refused": self.refused,
        }


class TairaGym:
    """Requests drawn by ``seed``, over ``copies`` items of each kind, colour and material.

    ``ndcg_weight``, ``hit_weight`` and ``call_price`` are those of the reward. Raises GymError for numbers
    that cannot be, and for weights with which a reward might exceed 1.
    """

    name = "taira"

    def __init__(
        self,
        train: int = 1000,
        test: int = 100,
        seed: int = 0,
        copies: int = 4,
        max_turns: int = 6,
        ndcg_weight: float = 0.5,
        hit_weight: float = 0.25,
        call_price: float = 0.1,
    ) -> None:
        counts = {"train": (train, 1), "test": (test, 0), "copies": (copies, 1), "max_turns": (max_turns, 1)}
        check_counts(self.name, counts)
        self._pay = Pay(ndcg_weight, hit_weight, call_price)
        if min(ndcg_weight, hit_weight, call_price) < 0 or ndcg_weight + 2 * hit_weight > 1:
            raise GymError(
                f"{self.name}: ndcg_weight={ndcg_weight}, hit_weight={hit_weight}, call_price={call_price}: "
                "none is below 0, and ndcg_weight + 2 hit_weight is 1 at most"
            )
        self.max_turns = max_turns
        self._counts, self._seed, self._items = (train, test), seed, catalogue(copies)

    def tasks(self, split: str) -> Sequence[str]:
        """Names of ``train``, ``test`` or ``all``. Raises GymError for another split."""
        return task_names(self.name, *self._counts, split)

    def task(self, name: str) -> TairaTask:
        """A task, with the habits that the agent is not told. Raises GymError for one that there is not."""
        check_task(self.name, *self._counts, name)
        drawn = random.Random(f"{self.name}/{self._seed}/{name}")
        habits = draw_habits(drawn)
        return TairaTask(name, draw_request(drawn, habits), habits)

    def make(self, task: str) -> TairaWorld:
        """A world of a task."""
        return TairaWorld(self.task(task), self._items, self.max_turns, self._pay)


def draw_request(drawn: random.Random, habits: dict[str, str]) -> Request:
    """A request: of one kind, of two, or open; half of them name an occasion instead of a material."""
    wanted = drawn.choice((1, 2, OPEN))
    kinds = KINDS if wanted == OPEN else tuple(sorted(drawn.sample(KINDS, wanted)))
    colour, material, occasion = drawn.choice(COLOURS), drawn.choice(MATERIALS), drawn.choice(OCCASIONS)
    if drawn.random() < 0.5:
        return Request(kinds, colour, material, "", wanted == OPEN)
    return Request(kinds, colour, habits[occasion], occasion, wanted == OPEN)
