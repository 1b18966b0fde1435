"""Decision points: where an agent may act, the prompt it sees there, and the keys of the sampler's noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from proactor.dialogue.board import Board, BoardShares, draw_board
from proactor.dialogue.dialogue import Dialogue
from proactor.dialogue.prompt import PromptEncoder


@dataclass(frozen=True, slots=True)
class Decision:
    """A chance to act: after ``turn`` of ``dialogue``, with ``board`` shown; ``prompt`` as token ids."""

    dialogue: Dialogue
    turn: int
    board: Board
    prompt: list[int]


def decisions(
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    *,
    seed: int,
    epoch: int,
    shares: BoardShares | None = None,
) -> list[Decision]:
    """All decision points of ``dialogues``; boards by ``shares`` and (seed, epoch, dialogue, turn).

    In graph mode the prompts show the graph of an agent that gave every target answer; for the agent's own
    graph see `proactor.training.graph_rollout`.
    """
    points = []
    for dialogue in dialogues:
        for turn in dialogue.decision_turns:
            board = draw_board(dialogue, turn, seed=seed, epoch=epoch, shares=shares)
            graph = encoder.earlier_graph(dialogue, turn, board)
            points.append(Decision(dialogue, turn, board, encoder.prompt(dialogue, turn, board, graph)))
    return points


def noise_key(dialogue: Dialogue, turn: int) -> int:
    """31-bit key of a decision for the sampler's noise, independent of rank and order."""
    return _hash31(f"{dialogue.id}/{turn}")


def candidate_key(dialogue: Dialogue, turn: int, candidate: int) -> int:
    """The `noise_key` of one candidate's decision, where candidates decide for themselves (graph mode)."""
    return _hash31(f"{dialogue.id}/{turn}/{candidate}")


def _hash31(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) >> 1
