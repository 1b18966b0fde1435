"""Input of a reward that compares answers: those sampled at one decision, and the progress of training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.dialogue import Dialogue
from proactor.dialogue.parse import Parsed, parse


@dataclass(frozen=True)
class Candidates:
    """The K answers to one decision: after ``turn``, with ``board`` shown and ``tools`` on offer."""

    dialogue: Dialogue
    turn: int
    texts: tuple[str, ...]
    tools: Catalog
    board: Board = EMPTY

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def parsed(self) -> tuple[Parsed, ...]:
        """Each answer, parsed."""
        return tuple(parse(text) for text in self.texts)


@dataclass(frozen=True, slots=True)
class Stage:
    """Progress of training: ``update`` of ``total``, counted from 0. The paper's stages are stages of
    training, not of a dialogue [NOTES, methods 1.6].
    """

    update: int = 0
    total: int = 1

    @property
    def progress(self) -> float:
        """``update / total`` in 0..1."""
        return min(1.0, self.update / self.total) if self.total > 0 else 1.0
