"""`OwnBoard`: what an agent keeps of a dialogue from one decision to the next, in evaluations and at work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.parse import Parsed, parse
from proactor.dialogue.prompt import PromptEncoder
from proactor.dialogue.state_graph import NO_GRAPH, StateGraph

Kept = Callable[[tuple[Action, ...]], Iterable[Action]]


@dataclass(slots=True)
class OwnBoard:
    """The board of the agent's own fires and, in graph mode, the graph that it wrote last."""

    board: Board = EMPTY
    graph: StateGraph = NO_GRAPH

    def prompt(self, encoder: PromptEncoder, dialogue: Dialogue, turn: int) -> list[int]:
        """Ids of the prompt of the decision after ``turn``."""
        return encoder.prompt(dialogue, turn, self.board, self.graph)

    def take(
        self, encoder: PromptEncoder, dialogue: Dialogue, turn: int, text: str, kept: Kept | None = None
    ) -> tuple[Parsed, bool]:
        """The answer read, and whether its graph was read in full. The READY actions are triggered; ``kept``
        gives those of the answer that count (default: all).
        """
        read, whole = parse(text), True
        actions = read.actions if kept is None else kept(read.actions)
        self.board = self.board.after(dialogue, turn, actions)
        if encoder.style.mode == "graph":
            self.graph, unread = self.graph.after(text)
            whole = not unread
        return read, whole
