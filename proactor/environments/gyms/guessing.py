"""What Telepathy and Turtle share: questions that a model answers with yes or no, and answers that it judges.

Protocol only: rewards are a model's judgement, so nothing is claimed on them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proactor.environments.calls import FINISH, INTERACT, VERBS, plain
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.model_user import ModelUser
from proactor.environments.gyms.tasks import Tasks
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.environments.users import UserModel

FULL = 1.0 - 1e-9
"""The score that ends an episode."""


@dataclass(frozen=True, slots=True)
class Riddle:
    """A secret, what the agent is told of it, and what an answer must hold, with weights that sum to 1."""

    id: str
    told: str
    secret: str
    criteria: tuple[tuple[str, float], ...]


class GuessingWorld:
    """One riddle. ``role`` tells the model what it is; by default every verb involves the user."""

    def __init__(
        self,
        gym: str,
        riddle: Riddle,
        user: ModelUser,
        system: str,
        role: str,
        max_turns: int,
        user_verbs: Collection[str],
    ) -> None:
        self.gym, self.riddle, self.user = gym, riddle, user
        self.system, self.role = system, role
        self.max_turns, self.user_verbs = max_turns, frozenset(user_verbs)
        self.turns, self.best, self.over = 0, 0.0, False

    def reset(self, seed: int) -> Opening:
        """Begin anew; the model answers greedily."""
        self.turns, self.best, self.over = 0, 0.0, False
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.riddle.told},
        ]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Answer a question or judge an answer, which is worth what it improves on the best one before.
        Raises EpisodeOver after the end.
        """
        if self.over:
            raise EpisodeOver(f"{self.gym} {self.riddle.id}: the episode is over")
        self.turns += 1
        call, before = plain(call), self.user.nonsense
        reward, score = 0.0, 0.0
        match call.verb:
            case "action":
                said = self.user.yes_or_no(self.role, self.riddle.secret, call.content)
            case "answer":
                score = self._score(call.content)
                reward, self.best = max(0.0, score - self.best), max(self.best, score)
                said = "That is right!" if score >= FULL else f"Not quite: {score:.2f} of 1."
            case "finish":
                said = "The episode is over."
            case _:
                said = "Please choose action with a question, or answer with your answer."
        done, cut = call.verb == FINISH or score >= FULL, self.turns >= self.max_turns
        self.over = done or cut
        info = {"score": self.best, "solved": self.best >= FULL, "nonsense": self.user.nonsense - before}
        return Outcome(said, reward, done, cut, info)

    def _score(self, answer: str) -> float:
        marks = self.user.marks(self.riddle.secret, answer, [text for text, _ in self.riddle.criteria])
        return sum(mark * weight for mark, (_, weight) in zip(marks, self.riddle.criteria)) if marks else 0.0


class GuessingGym:
    """Riddles of one kind, for which ``user`` is user and judge."""

    def __init__(
        self,
        name: str,
        tasks: Tasks[Riddle],
        user: UserModel,
        texts: tuple[str, str],
        max_turns: int,
        user_verbs: Collection[str] = VERBS,
    ) -> None:
        self.name, self.max_turns = name, max_turns
        self._tasks, self._user = tasks, user
        self._texts, self._user_verbs = texts, tuple(user_verbs)

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of ``train``, ``test`` or ``all``."""
        return self._tasks.names(split)

    def make(self, task: str) -> GuessingWorld:
        """A world of a task. Raises GymError for a task that there is not."""
        user = ModelUser(self._user)
        system, role = self._texts
        return GuessingWorld(
            self.name, self._tasks[task], user, system, role, self.max_turns, self._user_verbs
        )
