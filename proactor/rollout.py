"""Decision points of dialogues as groups for the engine: sampled and scored for GRPO, or with the wanted answer for supervised training.

A logged dialogue is replayed turn by turn, so each decision is a contextual bandit and no user simulator is needed [INFERRED, 1.7]. All decisions of a
dialogue go to the engine together: they share its trunk.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proactor.board import Board, draw_board
from proactor.dialogue import Dialogue
from proactor.engine import Engine, Group, Sample, Sampling
from proactor.parse import parse
from proactor.prompt import PromptEncoder, target, unknowable
from proactor.rewards import RewardFunction, run_reward


@dataclass(frozen=True, slots=True)
class Decision:
    """A point where the agent may act: after ``turn`` of ``dialogue``, seeing ``board``; ``prompt`` as token ids."""

    dialogue: Dialogue
    turn: int
    board: Board
    prompt: list[int]


def decisions(
    encoder: PromptEncoder, dialogues: Sequence[Dialogue], *, seed: int, epoch: int, logged: float = 0.5
) -> list[Decision]:
    """Every decision point of ``dialogues``, its board drawn from {empty, logged} by (seed, epoch, dialogue, turn) alone."""
    found = []
    for dialogue in dialogues:
        for turn in dialogue.decision_turns:
            board = draw_board(dialogue, turn, seed=seed, epoch=epoch, logged=logged)
            found.append(Decision(dialogue, turn, board, encoder.prompt(dialogue, turn, board)))
    return found


def noise_key(dialogue: Dialogue, turn: int) -> int:
    """31-bit name of a decision for the sampler's noise: the same whatever rank or order it comes in."""
    return int.from_bytes(hashlib.blake2b(f"{dialogue.id}/{turn}".encode(), digest_size=4).digest()) >> 1


def sample_groups(
    engine: Engine, encoder: PromptEncoder, dialogues: Sequence[Dialogue], sampling: Sampling, reward_name: str, reward: RewardFunction,
    *, seed: int, epoch: int, logged: float = 0.5,
) -> list[Group]:  # fmt: skip
    """Sample a group at every decision point and score it.

    Each sample's ``info`` holds dialogue, turn, parts (of the reward), ok (all of it could be read) and unread (by reason).
    Raises RewardError, naming the reward, when it raises or gives something that is not a finite number.
    """
    points = decisions(encoder, dialogues, seed=seed, epoch=epoch, logged=logged)
    groups = engine.sample([p.prompt for p in points], sampling, keys=[noise_key(p.dialogue, p.turn) for p in points])
    for point, group in zip(points, groups, strict=True):
        group.tree = encoder.tree(point.dialogue, point.turn)
        texts = [s.text for s in group.samples]
        columns: Mapping[str, Sequence[object]] = {
            "dialogue": [point.dialogue] * len(texts), "turn": [point.turn] * len(texts), "board": [point.board] * len(texts)
        }  # fmt: skip
        prompt = engine.tokenizer.decode(point.prompt)
        scored = run_reward(reward_name, reward, [prompt] * len(texts), texts, columns)
        for sample, parts in zip(group.samples, scored, strict=True):
            read = parse(sample.text)
            sample.reward = parts["reward"]
            sample.info = {
                "dialogue": point.dialogue.id,
                "turn": point.turn,
                "parts": parts,
                "ok": read.ok,
                "unread": read.unread,
            }
    return groups


def sft_groups(
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    *,
    seed: int,
    epoch: int,
    logged: float = 0.5,
    pending: bool = True,
) -> tuple[list[Group], Counter[str]]:
    """One wanted answer a decision point, sharing trunks. Points where an unknown window may be right are left out and counted as ``unknowable``."""
    groups, counters = [], Counter[str]()
    for point in decisions(encoder, dialogues, seed=seed, epoch=epoch, logged=logged):
        if unknowable(point.dialogue, point.turn, point.board):
            counters["unknowable"] += 1
            continue
        ids = encoder.answer(target(point.dialogue, point.turn, point.board, pending=pending))
        groups.append(Group(point.prompt, [Sample(point.prompt, ids)], tree=encoder.tree(point.dialogue, point.turn)))
        counters["examples"] += 1
    return groups, counters


def held_out_loss(engine: Engine, groups: Sequence[Group]) -> float:
    """Mean negative log-likelihood (nats a token) of the groups' samples; nothing is updated."""
    return engine.nll(groups)
