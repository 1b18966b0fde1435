"""`TurnReward`: a reward of single decisions. It can also be called like a TRL reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.parse import Parsed, parse
from proactor.rewards.options import RewardError

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine

Content = str | Sequence[Mapping[str, str]]
"""A prompt or a completion in TRL: a text, or a list of messages."""


@runtime_checkable
class TurnReward(Protocol):
    """A built-in reward that scores each decision by itself. Evaluations use these too."""

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take the engine and all tools; called once, after the model is loaded. By default, keep nothing."""
        return

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """The reward of one decision under "reward", and the numbers it is made of by name; all finite."""
        ...

    def __call__(
        self, prompts: Sequence[Content], completions: Sequence[Content], **columns: Sequence[Any]
    ) -> list[float]:
        """TRL's calling convention: one number per completion. `run_reward` calls `parts` instead."""
        return [parts["reward"] for parts in batch_parts(self, completions, columns)]


def batch_parts(
    reward: TurnReward, completions: Sequence[Content], columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, float]]:
    """`TurnReward.parts` of every completion of a TRL batch.

    ``columns``: one value per completion, `dialogue` (Dialogue), `turn` (int) and optionally `board` (Board).
    Raises RewardError where one of the first two is missing.
    """
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


def completion_text(completion: Content) -> str:
    """The text of a completion: itself, or the contents of its messages, joined."""
    return completion if isinstance(completion, str) else "".join(m.get("content") or "" for m in completion)
