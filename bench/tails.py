"""Environments that answer after heavy-tailed times: sessions beside lock-step rounds of the same work.

    python -m bench.tails [--repeats 3]

A rollout has some turns; between two of them its environment thinks (`asyncio.sleep`), then answers with an
observation. Sessions let each rollout go on when its own environment has answered. Rounds draw the next turn
of all rollouts at once, with `Engine.sample`, when the slowest environment has answered. Both sides get the
same plans (prompts, lengths, observations, times); what they draw, greedily, has to agree.

Tokens computed are those that entered the model, over the least: prompts once, actions, observations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.models import VOCAB, write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record
from proactor.engine import Engine, LoRA, Sampling

ROLLOUTS, TURNS = 48, (3, 7)
PROMPT, ACTION, OBSERVATION = (60, 200), (8, 32), (8, 40)
"""Least and most tokens; each is drawn evenly."""
TIMEOUT = 3.0
"""Seconds after which an environment answers in any case."""
LATENCIES: dict[str, Callable[[random.Random], float]] = {
    "log-normal, median 0.1 s, sigma 1.0": lambda rng: rng.lognormvariate(0, 1.0) * 0.1,
    "log-normal, median 0.1 s, sigma 1.5": lambda rng: rng.lognormvariate(0, 1.5) * 0.1,
    "Pareto, least 0.05 s, alpha 1.2": lambda rng: rng.paretovariate(1.2) * 0.05,
}
AGREE = 0.9
"""Share of rollouts that have to be the same: in float32 a batch can round a draw across a limit."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens to draw, then the environment's seconds and observation; the last turn's are not waited for."""

    tokens: int
    latency: float
    observation: list[int]

    @property
    def sampling(self) -> Sampling:
        """The settings of this turn."""
        return Sampling(max_tokens=self.tokens, temperature=0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one rollout does, whatever it draws."""

    prompt: list[int]
    turns: list[Turn]

    @property
    def least(self) -> int:
        """Tokens of prompt, actions and observations."""
        seen = sum(len(turn.observation) for turn in self.turns[:-1])
        return len(self.prompt) + sum(turn.tokens for turn in self.turns) + seen


def plans(seed: str, count: int, latency: Callable[[random.Random], float]) -> list[Plan]:
    """Seeded plans of ``count`` rollouts."""
    rng = random.Random(seed)

    def ids(limits: tuple[int, int]) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(rng.randint(*limits))]

    def turn() -> Turn:
        return Turn(rng.randint(*ACTION), min(TIMEOUT, latency(rng)), ids(OBSERVATION))

    return [Plan(ids(PROMPT), [turn() for _ in range(rng.randint(*TURNS))]) for _ in range(count)]


async def sessions(engine: Engine, work: Sequence[Plan]) -> list[list[int]]:
    """Each rollout on its own; returns the tokens of each, the prompt's first."""
    async with engine.session() as session:

        async def rollout(key: int, plan: Plan) -> list[int]:
            sample = await session.sample(plan.prompt, plan.turns[0].sampling, key=key)
            for done, turn in pairwise(plan.turns):
                await asyncio.sleep(done.latency)
                await session.advance(sample, done.observation, turn.sampling)
            return sample.prompt_ids + sample.token_ids

        return await asyncio.gather(*(rollout(key, plan) for key, plan in enumerate(work)))


async def rounds(engine: Engine, work: Sequence[Plan]) -> list[list[int]]:
    """All rollouts turn by turn; returns the tokens of each, the prompt's first."""
    ids, going, turn = [list(plan.prompt) for plan in work], list(range(len(work))), 0
    while going:
        settings = [work[i].turns[turn].sampling for i in going]
        for i, group in zip(going, engine.sample([ids[i] for i in going], settings), strict=True):
            ids[i] += group.samples[0].token_ids
        going = [i for i in going if turn + 1 < len(work[i].turns)]
        await asyncio.gather(*(asyncio.sleep(work[i].turns[turn].latency) for i in going))
        for i in going:
            ids[i] += work[i].turns[turn].observation
        turn += 1
    return ids


SIDES = {"sessions": sessions, "rounds": rounds}


def measure(engine: Engine, work: Sequence[Plan]) -> dict[str, Any]:
    """Both sides on the same plans. Exits where they draw other tokens."""
    found: dict[str, Any] = {}
    drawn = {}
    for name, side in SIDES.items():
        engine.weights_changed()  # nothing is cached
        computed, began = engine.counters().get("tokens_computed", 0), time.perf_counter()
        drawn[name] = asyncio.run(side(engine, work))
        seconds = time.perf_counter() - began
        computed = engine.counters()["tokens_computed"] - computed
        found[name] = {"seconds": seconds, "computed": computed / sum(plan.least for plan in work)}
    equal = sum(a == b for a, b in zip(drawn["sessions"], drawn["rounds"], strict=True)) / len(work)
    if equal < AGREE:
        raise SystemExit(f"bench.tails: only {equal:.0%} of the rollouts are equal, nothing was measured")
    return {
        **found,
        "ratio": found["rounds"]["seconds"] / found["sessions"]["seconds"],
        "equal": equal,
        "waits": {"sessions": longest_rollout(work), "rounds": slowest_of_rounds(work)},
    }


def longest_rollout(work: Sequence[Plan]) -> float:
    """Seconds that sessions wait in any case: for the environment of the rollout that waits most."""
    return max(sum(turn.latency for turn in plan.turns[:-1]) for plan in work)


def slowest_of_rounds(work: Sequence[Plan]) -> float:
    """Seconds that rounds wait in any case: for the slowest environment of each."""
    most = max(len(plan.turns) for plan in work)
    waiting = ([p.turns[i].latency for p in work if i + 1 < len(p.turns)] for i in range(most))
    return sum(max(latencies, default=0.0) for latencies in waiting)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    middle = statistics.median(values)
    return {"estimate": round(middle, 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The repeats of one latency."""
    return {
        "ratio": spread([run["ratio"] for run in runs]),
        "equal": min(run["equal"] for run in runs),
        **{
            side: {
                "seconds": spread([run[side]["seconds"] for run in runs]),
                "waits": spread([run["waits"][side] for run in runs]),
                "computed": spread([run[side]["computed"] for run in runs]),
            }
            for side in SIDES
        },
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All latencies; in each repeat both sides get other plans."""
    cells = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_qwen2(Path(scratch) / "model")
        engine = Engine.load(model, lora=LoRA(rank=16), device="cpu", dtype="float32")
        engine.sample([[5, 6, 7]] * 8, Sampling(max_tokens=8, ignore_eos=True))  # warms up
        for name, latency in LATENCIES.items():
            runs = [
                measure(engine, plans(f"{name} {i}", options.rollouts, latency))
                for i in range(options.repeats)
            ]
            cell = cells[name] = summary(runs)
            words = "; ".join(
                f"{side} " + ", ".join(f"{key} {cell[side][key]['estimate']:.3f}" for key in cell[side])
                for side in SIDES
            )
            ratio = cell["ratio"]
            say(f"{name}: {ratio['estimate']:.2f} x ({ratio['low']:.2f} - {ratio['high']:.2f}); {words}")
        engine.release()
    return cells


def main(argv: list[str] | None = None) -> None:
    """Measure, print a line a latency and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.tails", description=__doc__.split("\n")[0])
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS)
    parser.add_argument("--repeats", type=int, default=3)
    add_results(parser)
    options = parser.parse_args(argv)
    cells = run(options)
    record = {
        **stamp(),
        "rollouts": options.rollouts,
        "repeats": options.repeats,
        "turns": TURNS,
        "tokens": {"prompt": PROMPT, "action": ACTION, "observation": OBSERVATION},
        "timeout": TIMEOUT,
        "cells": cells,
    }
    say(f"record: {write_record(options.results, 'tails', record)}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
