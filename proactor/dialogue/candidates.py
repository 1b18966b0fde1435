"""Input of a reward that compares answers: those sampled at one decision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.dialogue import Dialogue
from proactor.dialogue.parse import Parsed, parse


@dataclass(frozen=True)
class Candidates:
    """The K answers to one decision: after ``turn``, with ``board`` shown and ``tools`` on offer.

    ``prompts``: what each was drawn after, as text; empty where that is not known.
    """

    dialogue: Dialogue
    turn: int
    texts: tuple[str, ...]
    tools: Catalog
    board: Board = EMPTY
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def parsed(self) -> tuple[Parsed, ...]:
        """Each answer, parsed."""
        return tuple(parse(text) for text in self.texts)
