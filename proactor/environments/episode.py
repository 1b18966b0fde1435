"""`Episode`: one rollout of an environment, turn by turn, with the tokens that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from proactor.engine import Sample
from proactor.environments.protocol import Call

Span = tuple[int, int]
"""[start, end) in ``Sample.token_ids``."""

Ending = Literal[
    "terminated", "truncated", "turns", "tokens", "context", "no_call", "error", "timeout", "cancelled"
]
"""The environment's end or cut; the cap on turns, on tokens, the end of the context; a reply without a call;
an environment that raised or did not answer in time; the caller.
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the agent and what the environment answered.

    ``calls``: what was read in the reply, in order, none where nothing could be read; ``reward`` is the last
    one's. ``action`` and ``observation`` are token spans of the episode's sample; the second is empty after
    the last turn. ``said``: what the reply held beside its calls, thoughts included.
    """

    calls: tuple[Call, ...]
    action: Span
    observation: Span
    feedback: str = ""
    reward: float = 0.0
    user_involved: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""

    @property
    def verb(self) -> str:
        """The last call's verb; "" where the reply held none."""
        return self.calls[-1].verb if self.calls else ""


def last_info(turns: Sequence[Turn]) -> dict[str, Any]:
    """The last that an environment gave."""
    return next((dict(turn.info) for turn in reversed(turns) if turn.info), {})


@dataclass(slots=True)
class Episode:
    """One rollout.

    ``horizon``: most turns that it might have taken. ``error``: one line, where an environment failed.
    ``info``: the last that the environment gave; see `score` and `solves`. ``opening``: what the user said
    before the first turn.
    """

    gym: str
    task: str
    seed: int
    sample: Sample
    turns: Sequence[Turn]
    ending: Ending
    horizon: int
    error: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    opening: str = ""

    @property
    def score(self) -> float:
        """What was reached: ``info["score"]``, or else the largest reward of a turn (0 without)."""
        return float(self.info.get("score", max(self.rewards, default=0.0)))

    def solves(self, success: float = 1.0) -> bool:
        """Whether the task was solved: ``info["solved"]`` where the environment says it, or else a score of
        ``success`` or more.
        """
        return bool(self.info.get("solved", self.score >= success))

    @property
    def rewards(self) -> list[float]:
        """One a turn."""
        return [turn.reward for turn in self.turns]

    @property
    def user_actions(self) -> int:
        """U: turns that involved the user."""
        return sum(turn.user_involved for turn in self.turns)

    def logprobs(self, turn: Turn) -> list[float]:
        """Log-probabilities of a turn's tokens under the policy that drew them (natural logarithm)."""
        return self.sample.policy_logprobs[slice(*turn.action)]

    def versions(self, turn: Turn) -> list[int]:
        """The policy version of each of a turn's tokens."""
        return self.sample.token_versions()[slice(*turn.action)]
