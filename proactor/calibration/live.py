"""The probabilities of `probabilities.py` for one decision of a dialogue that goes on, from cached pages.

`score` computes a whole dialogue at once, for dialogues that have ended. Here the trie of the canonical
answers is walked from fork to fork in the sampling loop: the probability of what follows is that of a sample
that a mask forces. Pages of the dialogue and of the answers' beginnings are reused, so a decision computes
what was said since the last one, and the nodes that it visits.

A tool is followed only while its probability may still reach ``floor``. What is left out is below it, so
every tool at or above the floor has its exact probability; in most turns, where the agent waits, the first
fork or two tell that no tool has.

As in a `ScoreTable`, the board is empty, and the values are the greedy completion of the forced name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from proactor.calibration.probabilities import Answers, Path
from proactor.calibration.score_table import forced_sampling, forced_values
from proactor.dialogue import Status
from proactor.engine import ChatFormat, Engine, Sampling

Key = tuple[Status, str]
"""A status and the name of a tool."""


@dataclass(frozen=True, slots=True)
class TurnScores:
    """One decision. ``wait``, ``actions``: probabilities, of those that reach the floor alone; ``openings``:
    the most probable ids that begin each action. ``nodes``: how many of the trie were computed.
    """

    wait: float
    actions: Mapping[Key, float]
    openings: Mapping[Key, Path]
    nodes: int


async def score_turn(engine: Engine, prompt: list[int], known: Answers, floor: float) -> TurnScores:
    """The scores of the decision that ``prompt`` leads to. Raises EngineError as `Engine.sample`."""
    children: dict[Path, list[int]] = {}
    for before, token in known.edges:
        children.setdefault(before, []).append(token)
    paths: list[tuple[Key | None, tuple[Path, ...]]] = [(None, (known.wait,)), *known.beginnings.items()]
    logps: dict[Path, float] = {(): 0.0}
    while True:
        alive = [p for _, several in paths if _bound(several, logps) >= floor for p in several]
        nodes = dict.fromkeys(_deepest(path, logps) for path in alive if path not in logps)
        if not nodes:
            break
        chains = [(node, _chain(node, token, children)) for node in nodes for token in children[node]]
        prompts = [[*prompt, *node] for node, _ in chains]
        async for group in engine.stream(prompts, [_forcing(engine, chain) for _, chain in chains]):
            node, chain = chains[group.index]
            for token, logp in zip(chain, group.samples[0].policy_logprobs, strict=True):
                logps[(*node, token)] = logps[node] + logp
                node = (*node, token)
    found = {key: _bound(several, logps) for key, several in paths}
    kept = {key: p for key, p in found.items() if key is not None and p >= floor}
    openings = {key: max(known.beginnings[key], key=lambda path: logps[path]) for key in kept}
    return TurnScores(found[None], kept, openings, len(logps) - 1)


def _chain(node: Path, token: int, children: Mapping[Path, list[int]]) -> Path:
    """``token`` and what follows it as long as nothing else may: one request computes all of it."""
    chain = [token]
    while len(following := children.get((*node, *chain), [])) == 1:
        chain += following
    return tuple(chain)


def _deepest(path: Path, logps: Mapping[Path, float]) -> Path:
    """The longest beginning of ``path`` whose probability is known."""
    return next(path[:k] for k in range(len(path), -1, -1) if path[:k] in logps)


def _bound(paths: Sequence[Path], logps: Mapping[Path, float]) -> float:
    """The sum of the probabilities of ``paths``, or of their known beginnings, which is at least as large."""
    nodes = dict.fromkeys(_deepest(path, logps) for path in paths)
    return min(1.0, math.fsum(math.exp(logps[node]) for node in nodes))


def _forcing(engine: Engine, tokens: Path) -> Sampling:
    """A sample of exactly ``tokens``, whatever their probability."""

    def mask(ids: list[int], position: int) -> torch.Tensor:
        allowed = torch.zeros(engine.config.vocab_size, dtype=torch.bool)
        allowed[tokens[len(ids)]] = True
        return allowed

    return Sampling(temperature=1.0, max_tokens=len(tokens), ignore_eos=True, logit_mask=mask)


async def complete(
    engine: Engine,
    chat: ChatFormat,
    prompt: list[int],
    openings: Mapping[Key, Path],
    max_tokens: int,
) -> tuple[dict[Key, Mapping[str, str] | None], int]:
    """The values of each action: the greedy answer that begins with its opening; None where it is unread.
    And the number of tokens drawn.
    """
    keys, drawn = list(openings), 0
    found: dict[Key, Mapping[str, str] | None] = {}
    if not keys:
        return found, 0
    prompts = [[*prompt, *openings[key]] for key in keys]
    settings = [forced_sampling(openings[key], max_tokens) for key in keys]
    async for group in engine.stream(prompts, settings):
        status, tool = keys[group.index]
        text = chat.decode([*openings[status, tool], *group.samples[0].token_ids])
        found[status, tool] = forced_values(text, tool, status)
        drawn += len(group.samples[0].token_ids)
    return found, drawn
