"""A world whose results are long, and a model that says what a test wants, for Agent-Omit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from proactor.engine import Engine, Sampling
from proactor.environments.demonstration import TOOL
from proactor.environments.protocol import Call, Opening, Outcome
from tests.engine.engines import load
from tests.proactor.training.episodes import calling_folder

LONG = "many words "
CONTEXT = 1024


class World:
    """Answers with some words, ends at the ``stop``-th call or the one that says "right", which solves it."""

    user_verbs = frozenset({"answer"})

    def __init__(self, stop: int, told: str = LONG) -> None:
        self.stop, self.told, self.count = stop, told, 0

    def reset(self, seed: int) -> Opening:
        self.count = 0
        return Opening([{"role": "user", "content": "go"}])

    def step(self, call: Call) -> Outcome:
        self.count += 1
        solved = call.content == "right"
        return Outcome(f"{self.told}{self.count}", float(solved), solved or self.count >= self.stop)


class WorldGym:
    """Worlds of four calls."""

    name, max_turns = "world", 9

    def __init__(self, told: str = LONG) -> None:
        self.told = told

    def tasks(self, split: str) -> Sequence[str]:
        return ["a"]

    def make(self, task: str) -> World:
        return World(4, self.told)


def world_engine(folder: Path) -> Engine:
    """A tiny model, written to ``folder``, whose tokenizer knows the words of the world."""
    opening = World(1).reset(0)
    known = (
        LONG,
        "<think>",
        "</think>",
        "<tool_response_",
        "</tool_response_",
        "omit_tool_",
        "<omitted_tool_",
    )
    calling_folder(folder, opening, steps=1, context=CONTEXT, words=known)
    return load(folder, kv_tokens=4 * CONTEXT, deterministic=True)


def said(content: str, thought: str | None = "hm") -> str:
    written = json.dumps({"name": TOOL, "arguments": {"choice": "action", "content": content}})
    return f"{'' if thought is None else f'<think>{thought}</think>'}<tool_call>\n{written}\n</tool_call>"


def saying(engine: Engine, script: Sequence[str]) -> Sampling:
    """Settings under which the model says these replies, turn after turn, and the last one again."""
    assert engine.chat is not None
    ids, size = [engine.chat.encode_answer(reply) for reply in script], engine.config.vocab_size
    turns = itertools.chain(ids, itertools.repeat(ids[-1]))
    said: list[list[int]] = []

    def only(_: list[int], position: int) -> torch.Tensor:
        if position == 0:
            said.append(next(turns))
        return torch.arange(size) == said[-1][position]

    return Sampling(max_tokens=300, logit_mask=only)
