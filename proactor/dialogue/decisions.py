"""Decision points: where an agent may act, what it sees there, and how the sampler's noise is keyed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from proactor.dialogue.board import Board, draw_board
from proactor.dialogue.dialogue import Dialogue
from proactor.dialogue.prompt import PromptEncoder


@dataclass(frozen=True, slots=True)
class Decision:
    """A point where the agent may act: after ``turn`` of ``dialogue``, seeing ``board``; ``prompt`` as token
    ids.
    """

    dialogue: Dialogue
    turn: int
    board: Board
    prompt: list[int]


def decisions(
    encoder: PromptEncoder, dialogues: Sequence[Dialogue], *, seed: int, epoch: int, logged: float = 0.5
) -> list[Decision]:
    """Every decision point of ``dialogues``, its board drawn from {empty, logged} by (seed, epoch, dialogue,
    turn) alone.

    In graph mode the prompts show the graph of an agent that answered as wanted; see
    `proactor.training.graph_rollout` for the agent's own.
    """
    found = []
    for dialogue in dialogues:
        for turn in dialogue.decision_turns:
            board = draw_board(dialogue, turn, seed=seed, epoch=epoch, logged=logged)
            graph = encoder.earlier_graph(dialogue, turn, board)
            found.append(Decision(dialogue, turn, board, encoder.prompt(dialogue, turn, board, graph)))
    return found


def noise_key(dialogue: Dialogue, turn: int) -> int:
    """31-bit name of a decision for the sampler's noise: the same whatever rank or order it comes in."""
    return int.from_bytes(hashlib.blake2b(f"{dialogue.id}/{turn}".encode(), digest_size=4).digest()) >> 1


def candidate_key(dialogue: Dialogue, turn: int, candidate: int) -> int:
    """31-bit name of one candidate's decision for the sampler's noise; see `rollout.noise_key`."""
    name = f"{dialogue.id}/{turn}/{candidate}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest()) >> 1
