"""Which dialogues of a run fit the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.board import Board, logged_board
from proactor.dialogue.prompt import PromptEncoder


@dataclass(frozen=True, slots=True)
class Fitting:
    """``context``: the model's, in tokens."""

    config: RunConfig
    encoder: PromptEncoder
    context: int

    def select(self, part: str, dialogues: Sequence[Dialogue]) -> tuple[Dialogue, ...]:
        """The dialogues that fit the context; the others are left out, or an error, as `Data.too_long` says.

        Raises ConfigError then, and where none is left.
        """
        kept = []
        for dialogue in dialogues:
            need = self.tokens_needed(dialogue)
            if need <= self.context:
                kept.append(dialogue)
            elif self.config.data.too_long == "error":
                raise ConfigError(
                    f"data.{part}: dialogue {dialogue.id!r} needs up to {need} tokens, the model's context "
                    f"has {self.context}; data.too_long=drop leaves such dialogues out"
                )
        if not kept:
            raise ConfigError(f"data.{part}: no dialogue fits the model's context of {self.context} tokens")
        return tuple(kept)

    def tokens_needed(self, dialogue: Dialogue) -> int:
        """Most tokens of a prompt with its answer.

        That is the last decision, on a board with every logged action and one full answer per decision.
        """
        turns = dialogue.decision_turns
        if not turns:
            return 0
        board: Board = logged_board(dialogue, len(dialogue.turns) + 1)
        tokens = self.config.eval.max_tokens
        if self.config.grpo is not None:
            tokens = max(tokens, self.config.grpo.sampling.max_tokens)
        return (
            len(self.encoder.prompt(dialogue, turns[-1], board))
            + tokens
            + self.config.eval.max_tokens * (len(turns) - 1)
        )
