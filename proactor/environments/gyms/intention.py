"""IntentionGym: a vague request; find out by questions what it leaves open.

Tasks are UserRL's (Apache-2.0), the code is ours, and instead of a model a rule answers and judges
(`intention_user.RuleUser`). Given the same judgements, feedback and rewards are those of UserRL's own class
(``step_async``), as recorded episodes show (``tests/proactor/environments/upstream``).

A question is worth what the most important of the details it newly covers is worth (1, 0.7 or 0.4), less 0.2
for each detail beyond one. Success is how many of the details were covered (``info``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from proactor.environments.calls import FINISH, INTERACT, VERBS, plain
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.intention_user import Detail, RuleUser
from proactor.environments.gyms.tasks import Held, Tasks, by_id, official_tests
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.files import find_files, read_validated

WORTH = {3: 1.0, 2: 0.7, 1: 0.4}
"""Reward by importance."""
PENALTY = 0.2
"""For each detail beyond one that a question covers."""

SYSTEM = (
    "A user has a vague request. Find out by questions what it leaves open: what the user wants in each "
    "respect that matters.\n"
    "Call interact_with_env in each turn with choice action and one short question as content. One question "
    "should ask about one thing. The number of turns is limited."
)


class _Detail(BaseModel):
    model_config = ConfigDict(frozen=True)

    description: str
    importance: Literal["1", "2", "3"]
    inquiry: str
    options: Annotated[tuple[str, ...], Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    category: str
    task: str
    missing_details: Annotated[tuple[_Detail, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class IntentionTask:
    """A vague request and the details that it leaves open."""

    id: str
    category: str
    request: str
    details: tuple[Detail, ...]


class IntentionWorld:
    """One task. By default every verb involves the user, who answers each question."""

    def __init__(self, task: IntentionTask, max_turns: int, user_verbs: Collection[str] = VERBS) -> None:
        self.task, self.max_turns, self.user_verbs = task, max_turns, frozenset(user_verbs)
        self.reset(0)

    def reset(self, seed: int) -> Opening:
        """Begin anew. ``seed`` draws what the user wants."""
        self.user = RuleUser(self.task.id, self.task.details, seed)
        self.left = list(range(len(self.task.details)))
        self.turns, self.over, self.total = 0, False, 0.0
        said = f"The category of my request: {self.task.category}\nMy request: {self.task.request}"
        return Opening(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}], (INTERACT,)
        )

    def step(self, call: Call) -> Outcome:
        """Answer a question. Raises EpisodeOver after the end."""
        if self.over:
            raise EpisodeOver(f"intention {self.task.id}: the episode is over")
        self.turns += 1
        question = question_of(call)
        if question is None:
            self.over = True
            details = len(self.task.details)
            said = f"Session ended. You covered {details - len(self.left)}/{details} missing details."
            return Outcome(said, 0.0, True, False, self._info(()))
        asked = self.user.asked(question)
        new = [place for place in asked if place in self.left]
        self.left = [place for place in self.left if place not in new]
        last = self.turns >= self.max_turns
        self.over = last or not self.left
        reward = worth([self.task.details[place].importance for place in new])
        self.total += reward
        return Outcome(self.user.answer(asked), reward, self.over, last and bool(self.left), self._info(new))

    def _info(self, new: Sequence[int]) -> dict[str, int | float]:
        """The score is the sum of the rewards, as in UserRL; a task is solved when no detail is left."""
        details = len(self.task.details)
        covered = details - len(self.left)
        return {
            "new": len(new),
            "covered": covered,
            "coverage": covered / details,
            "score": self.total,
            "solved": not self.left,
        }


def question_of(call: Call) -> str | None:
    """The question that a call asks, ``[action]`` before it or not; None where it ends the episode."""
    call = plain(call)
    if call.verb == FINISH or call.content.lower().startswith(f"[{FINISH}]"):
        return None
    return f"[search] {call.content}" if call.verb == "search" else call.content


def worth(importances: Sequence[int]) -> float:
    """The reward of a question that newly covers details of these importances."""
    if not importances:
        return 0.0
    return max(0.0, WORTH[max(importances)] - PENALTY * (len(importances) - 1))


class IntentionGym:
    """IntentionGym's tasks, from ``intentions.json`` (or .gz) or UserRL's ``all_intentions_*.json`` at
    ``path`` (the file or its folder). Raises SourceError for an unreadable file or a wrong record.

    ``user_verbs``: which verbs count as involving the user.
    """

    name = "intention"

    def __init__(
        self,
        path: str | Path,
        split: Held = "official",
        max_turns: int = 16,
        user_verbs: Sequence[str] = VERBS,
    ) -> None:
        self.max_turns, self.user_verbs = max_turns, tuple(user_verbs)
        files = find_files(Path(path), "intentions.json.gz", "intentions.json", "all_intentions_*.json")
        records = [r for file in files for r in read_validated(file, TypeAdapter(list[_Record]))]
        tasks = by_id(self.name, files[0], [(record.id, _task(record)) for record in records])
        self._tasks = Tasks(self.name, tasks, split, official_tests(self.name))

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of ``train``, ``test`` or ``all``."""
        return self._tasks.names(split)

    def task(self, name: str) -> IntentionTask:
        """A task, with the details that the agent is not told."""
        return self._tasks[name]

    def make(self, task: str) -> IntentionWorld:
        """A world of a task. Raises GymError for a task that there is not."""
        return IntentionWorld(self._tasks[task], self.max_turns, self.user_verbs)


def _task(record: _Record) -> IntentionTask:
    details = tuple(
        Detail(detail.description, int(detail.importance), detail.inquiry, detail.options)
        for detail in record.missing_details
    )
    return IntentionTask(record.id, record.category, record.task, details)
