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

FAILED = frozenset[Ending]({"error", "timeout", "cancelled"})
"""Endings that are not the agent's: such an episode says nothing about what it did."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the agent and what the environment answered.

    ``calls``: what was read in the reply, in order, none where nothing could be read; ``reward`` is the last
    one's. ``action`` and ``observation`` are token spans of the episode's sample; the second is empty after
    the last turn. ``said``: what the reply held beside its calls, thoughts included. ``context``: the ids
    that the turn was drawn after, where a method edits the history; None: those of the sample before it.
    ``ran``: how many of the calls ran (None: all), ``user_involved``: how many of these involved the user.
    """

    calls: tuple[Call, ...]
    action: Span
    observation: Span
    feedback: str = ""
    reward: float = 0.0
    user_involved: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    context: tuple[int, ...] | None = None
    ran: int | None = None

    @property
    def actions(self) -> int:
        """Actions of the agent: see `actions_of`."""
        return actions_of(len(self.calls) if self.ran is None else self.ran)

    @property
    def verb(self) -> str:
        """The last call's verb; "" where the reply held none."""
        return self.calls[-1].verb if self.calls else ""


def actions_of(ran: int) -> int:
    """The actions of a turn of which so many calls ran: those, and a reply without a call is one too."""
    return max(1, ran)


def last_info(turns: Sequence[Turn]) -> dict[str, Any]:
    """The last that an environment gave."""
    return next((dict(turn.info) for turn in reversed(turns) if turn.info), {})


@dataclass(slots=True)
class Episode:
    """One rollout.

    ``horizon``: most turns that it might have taken. ``error``: one line, where an environment failed.
    ``info``: the last that the environment gave; see `score` and `solves`. ``opening``: what the user said
    before the first turn. ``sample``: all that was drawn and shown; where a history was edited, what to train
    on are the `pieces`.
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
    def failed(self) -> bool:
        """Whether it ended as no agent ends it (`FAILED`)."""
        return self.ending in FAILED

    @property
    def user_actions(self) -> int:
        """U: actions that involved the user."""
        return sum(turn.user_involved for turn in self.turns)

    @property
    def actions(self) -> int:
        """All actions: calls that ran, and replies without a call."""
        return sum(turn.actions for turn in self.turns)

    @property
    def tokens(self) -> int:
        """Tokens after the prompt as they stood at the end, without what an edited history had lost."""
        if not self.turns or (context := self.turns[-1].context) is None:
            return len(self.sample.token_ids)
        return (
            len(context) - len(self.sample.prompt_ids) + len(self.sample.token_ids) - self.turns[-1].action[0]
        )

    def pieces(self, turns: Sequence[Turn] | None = None) -> list[Sample]:
        """Samples that hold each of ``turns`` (all) after exactly the ids that it was drawn after.

        A turn that goes on from what the turn before it read and said is in one sample with it.
        """
        ids, found = self.sample.token_ids, list[Sample]()
        for turn in self.turns if turns is None else turns:
            start, end = turn.action
            reads = [*self.sample.prompt_ids, *ids[:start]] if turn.context is None else list(turn.context)
            last = found[-1].prompt_ids + found[-1].token_ids if found else []
            if found and reads[: len(last)] == last:
                found[-1].extend(reads[len(last) :])
            else:
                found.append(Sample(reads, [], mask=[], temperature=self.sample.temperature))
            self._append(found[-1], start, end)
        return found

    def _append(self, piece: Sample, start: int, end: int) -> None:
        """Append tokens of the sample, with all that was recorded of them, to a piece."""
        whole, here = self.sample, slice(start, end)
        own = whole.token_versions()[here]
        piece.versions = [*(piece.versions or [whole.policy_version] * len(piece.token_ids)), *own]
        piece.adapter, piece.policy_version = whole.adapter, whole.policy_version
        piece.mask = [*piece.trained_mask(), *whole.trained_mask()[here]]
        piece.token_ids.extend(whole.token_ids[here])
        piece.logprobs.extend(whole.logprobs[here])
        piece.policy_logprobs.extend(whole.policy_logprobs[here])
        piece.finish_reason = whole.finish_reason

    def logprobs(self, turn: Turn) -> list[float]:
        """Log-probabilities of a turn's tokens under the policy that drew them (natural logarithm)."""
        return self.sample.policy_logprobs[slice(*turn.action)]

    def versions(self, turn: Turn) -> list[int]:
        """The policy version of each of a turn's tokens."""
        return self.sample.token_versions()[slice(*turn.action)]
