"""Episodes as rows of JSON: what a run in an environment keeps of those it played, and how they are read.

Training's lie in ``samples/``, one a line; those of the test tasks in ``episodes.json`` (`BeforeAfter`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from proactor.environments.episode import FAILED, Episode, Turn, actions_of
from proactor.environments.protocol import Call
from proactor.files import SourceError, first_problem, read_validated
from proactor.methods.user_metrics import Outcome
from proactor.training.runs import read_rows

Row = dict[str, Any]
FILE = re.compile(r"grpo-(\d+)\.jsonl")
"""A file of samples, with its step."""


class CallRow(BaseModel):
    """A call; ``arguments``: of one without content, as of a tool of its own."""

    model_config = ConfigDict(frozen=True)

    verb: str
    content: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, call: Call) -> CallRow:
        """The row of a call."""
        return cls(
            verb=call.verb, content=call.content, arguments={} if call.content else dict(call.arguments)
        )


class TurnRow(BaseModel):
    """A turn: the agent's calls and what it said beside them, and what came back.

    ``advantage``: None where the episode was not trained on, or nothing was drawn. ``tokens``: drawn ones.
    ``user_involved`` and ``ran``: as in `Turn`; the first was a bool once, which reads as 0 or 1.
    """

    model_config = ConfigDict(frozen=True)

    calls: tuple[CallRow, ...] = ()
    said: str = ""
    feedback: str = ""
    reward: float = 0.0
    user_involved: int = 0
    advantage: float | None = None
    tokens: int = 0
    ran: int | None = None

    @classmethod
    def of(cls, episode: Episode, turn: Turn) -> TurnRow:
        """The row of a turn."""
        first, end = turn.action
        credited = episode.sample.advantage is not None and end > first
        return cls(
            calls=tuple(CallRow.of(call) for call in turn.calls),
            said=turn.said,
            feedback=turn.feedback,
            reward=turn.reward,
            user_involved=turn.user_involved,
            advantage=episode.sample.token_advantages()[first] if credited else None,
            tokens=end - first,
            ran=turn.ran,
        )

    @property
    def actions(self) -> int:
        """As `Turn.actions`."""
        return actions_of(len(self.calls) if self.ran is None else self.ran)


class EpisodeRow(BaseModel):
    """An episode; ``sample``: its place among those of its task that were played together; ``solved``: what
    the environment says of it, None where that says nothing.
    """

    model_config = ConfigDict(frozen=True)

    task: str
    sample: int = 0
    seed: int = 0
    score: float
    solved: bool | None = None
    ending: str
    error: str = ""
    opening: str = ""
    tokens: int = 0
    turns: tuple[TurnRow, ...] = ()

    @classmethod
    def of(cls, episode: Episode, sample: int) -> EpisodeRow:
        """The row of an episode."""
        return cls(
            task=episode.task,
            sample=sample,
            seed=episode.seed,
            score=episode.score,
            solved=bool(episode.info["solved"]) if "solved" in episode.info else None,
            ending=episode.ending,
            error=episode.error,
            opening=episode.opening,
            tokens=episode.tokens,
            turns=tuple(TurnRow.of(episode, turn) for turn in episode.turns),
        )

    @property
    def user_actions(self) -> int:
        """U: actions that involved the user."""
        return sum(turn.user_involved for turn in self.turns)

    @property
    def actions(self) -> int:
        """As `Episode.actions`."""
        return sum(turn.actions for turn in self.turns)

    def solves(self, success: float) -> bool:
        """As `Episode.solves`."""
        return self.score >= success if self.solved is None else self.solved

    def outcome(self, success: float, run: int = 0) -> Outcome:
        """The outcome of the episode, as `Outcome.of`; ``success``: the least score that solves its task."""
        return Outcome(
            task=self.task,
            score=self.score,
            solved=self.solves(success),
            user_actions=self.user_actions,
            actions=self.actions,
            tokens=sum(turn.tokens for turn in self.turns),
            run=run,
            failed=self.ending in FAILED,
        )


class BeforeAfter(BaseModel):
    """How a run's start and end played the test tasks; ``success``: the least score that solves one."""

    model_config = ConfigDict(frozen=True)

    success: float
    before: tuple[EpisodeRow, ...]
    after: tuple[EpisodeRow, ...]

    def outcomes(self, system: Literal["before", "after"], run: int = 0) -> list[Outcome]:
        """The outcomes of one side, as those of training run ``run``."""
        rows = self.before if system == "before" else self.after
        return [row.outcome(self.success, run) for row in rows]


def sample_rows(played: Sequence[Sequence[Episode]]) -> list[Row]:
    """The episodes of some groups as rows of JSON."""
    return [EpisodeRow.of(e, i).model_dump() for episodes in played for i, e in enumerate(episodes)]


def read_before_after(folder: Path) -> BeforeAfter | None:
    """The test episodes of a run; None where there are none. Raises SourceError where they cannot be read."""
    file = folder / "episodes.json"
    return read_validated(file, TypeAdapter(BeforeAfter)) if file.exists() else None


def sample_files(folder: Path) -> dict[int, Path]:
    """The files of a run's training episodes, by step."""
    found = [(FILE.fullmatch(file.name), file) for file in sorted((folder / "samples").glob("*.jsonl"))]
    return {int(name[1]): file for name, file in found if name}


def read_samples(file: Path) -> list[EpisodeRow]:
    """The episodes of a file. Raises SourceError, naming the line, for one that is none."""
    episodes = []
    for number, row in enumerate(read_rows(file), start=1):
        try:
            episodes.append(EpisodeRow.model_validate(row))
        except ValidationError as error:
            raise SourceError(f"{file}:{number}: {first_problem(error)}") from None
    return episodes
