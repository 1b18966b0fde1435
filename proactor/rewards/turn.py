"""Rewards of single decisions, computed from the references alone; what evaluations use too.

Families are confirmed [NOTES, methods 1.6], bodies [INFERRED]. Choices where the methods leave room, all
[INFERRED]:
- Open means: coverage contains the turn, window known, not on the board. Masked actions leave the turn as if
  not proposed.
- A repeat (on the board, or a second fire on one reference in the same turn) is false.
- Due for the last time means that no later decision turn lies in the ready window.
- An entry that could not be read is a false action without similarity, so an unparsable output gets the
  floor, `-false`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.matching import THETA, Judged, Timing, judge
from proactor.dialogue.parse import Parsed, parse
from proactor.dialogue.windows import due_at, open_at, ready_at
from proactor.rewards.options import RewardError
from proactor.scoring.metrics import early_weight


@runtime_checkable
class TurnReward(Protocol):
    """A built-in reward: `parts` scores one decision and names what it is made of, under "reward" the sum."""

    def parts(
        self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY
    ) -> dict[str, float]: ...

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class WeightedMetric:
    """`consistency * RAC + timing * T_u - false * F_u` [INFERRED weights 0.5, 0.4, 0.1].

    For n actions proposed: RAC = mean similarity to the nearest open reference, `T_u = (#early + #on_time) /
    n`, `F_u = #false / n`. For an empty proposal: RAC 1 if nothing is open else 0, T_u 0 if a reference is
    due for the last time else 1, F_u 0.

    The defaults are the methods' formula. Under it an early fire is worth as much as one on time, and waiting
    for an assent costs RAC at every turn, so that on synthetic dialogues firing as soon as the values are
    known (0.77) beats perfect timing (0.73). Three options make perfect timing the optimum [INFERRED]:
    `early`: worth of an early fire in T_u, a number, or "linear" for the weight of PT_w;
    `waiting`: an empty proposal is inconsistent while something is "open" or only while it is "ready";
    `pending`: worth in T_u of a PENDING action that is covered and not ready yet.
    """

    consistency: float = 0.5
    timing: float = 0.4
    false: float = 0.1
    early: float | Literal["linear"] = 1.0
    waiting: Literal["open", "ready"] = "open"
    pending: float = 0.0
    theta: float = THETA

    def __post_init__(self) -> None:
        if self.early != "linear" and not isinstance(self.early, int | float):
            raise RewardError(f"reward weighted_metric: early is a number or 'linear', not {self.early!r}")
        if self.waiting not in ("open", "ready"):
            raise RewardError(f"reward weighted_metric: waiting is 'open' or 'ready', not {self.waiting!r}")

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """{"reward", "rac", "max_rac", "timing", "false", "unread"}, all finite."""
        judged = judge(dialogue, turn, parsed.actions, fired=board.fired, theta=self.theta)
        kept = [j for j in judged if not j.masked]
        unread = sum(parsed.unread.values())
        n = len(kept) + unread
        if n == 0:
            wanted = open_at(dialogue, turn) if self.waiting == "open" else ready_at(dialogue, turn)
            rac = max_rac = float(all(r.ready is None or r.id in board.fired for r in wanted))
            in_time, false = float(all(r.id in board.fired for r in due_at(dialogue, turn))), 0.0
        else:
            rac, max_rac = sum(j.similarity for j in kept) / n, max((j.similarity for j in kept), default=0.0)
            in_time = sum(self._credit(j, turn) for j in kept) / n
            false = (unread + sum(j.timing in (Timing.FALSE, Timing.REPEAT) for j in kept)) / n
        reward = self.consistency * rac + self.timing * in_time - self.false * false
        return {
            "reward": reward,
            "rac": rac,
            "max_rac": max_rac,
            "timing": in_time,
            "false": false,
            "unread": float(unread),
        }

    def _credit(self, judged: Judged, turn: int) -> float:
        if judged.timing is Timing.EARLY and judged.reference is not None:
            return early_weight(judged.reference, turn) if self.early == "linear" else float(self.early)
        if judged.timing is None:
            begun = judged.reference is not None and (
                judged.reference.ready is None or turn < judged.reference.ready[0]
            )
            return self.pending * begun
        return float(judged.timing is Timing.ON_TIME)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return [p["reward"] for p in batch_parts(self, completions, columns)]


@dataclass(frozen=True, slots=True)
class Consistency:
    """RAC or Max RAC alone [name NOTES, body INFERRED]: what it trains is timid; for ablations. ``waiting``:
    as in `WeightedMetric`.
    """

    of: Literal["rac", "max_rac"] = "rac"
    theta: float = THETA
    waiting: Literal["open", "ready"] = "open"

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        parts = WeightedMetric(theta=self.theta, waiting=self.waiting).parts(dialogue, turn, parsed, board)
        return parts | {"reward": parts[self.of]}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return [p["reward"] for p in batch_parts(self, completions, columns)]


def batch_parts(
    reward: TurnReward, completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, float]]:
    """`parts` of each completion from the columns `dialogue`, `turn` and, when given, `board`."""
    for name in ("dialogue", "turn"):
        if name not in columns:
            raise RewardError(f"reward {type(reward).__name__}: needs the column {name!r}")
    boards = columns.get("board") or [EMPTY] * len(completions)
    return [
        reward.parts(dialogue, turn, parse(completion_text(completion)), board)
        for completion, dialogue, turn, board in zip(
            completions, columns["dialogue"], columns["turn"], boards, strict=True
        )
    ]


def completion_text(completion: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a completion: itself, or the contents of its messages joined (TRL's conversational
    form).
    """
    return completion if isinstance(completion, str) else "".join(m.get("content") or "" for m in completion)
