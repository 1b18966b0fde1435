"""What test_rank_losses.py runs: every loss with the same groups over 1, 2 and 4 calls and ranks.

    python rank_losses.py MODEL OUT

One import of torch serves all ranks: they are forked from it before it does anything else.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.forked import fork_ranks
from proactor.engine import GRPO, SFT, Engine, Group, LoRA, Sample
from proactor.engine.loss import Loss
from proactor.engine.update import prepare
from tests.engine.losses import CONFIGS, couple, loss_of

WORLDS = (1, 2, 4)
Deal = Callable[[list[list[Group]], int, int], list[list[Group]]]
"""(units, rank, ranks) -> the units of that rank."""
DEALS: dict[str, Deal] = {
    "in turn": lambda units, rank, ranks: units[rank::ranks],
    "all but one on the last": lambda units, rank, ranks: (
        units[1:] if rank == ranks - 1 else units[:1] if rank == 0 else []
    ),
}


def units() -> list[list[Group]]:
    """Six units of unlike sizes: one flat, one with a masked sample, one with a group that hangs off it."""
    made: list[list[Group]] = []
    for i in range(6):
        prompt = [7 * i + 1, 3, 5 * i + 2][: 1 + i % 3]
        samples = [
            _sample(prompt, [(11 * i + 5 * j + t) % 100 for t in range(2 + (i + j) % 4)]) for j in range(2)
        ]
        rewards = [1.0, 1.0] if i == 3 else [0.1 * i, 1.0]
        made.append([Group(prompt, samples, tree=i)])
        made[-1][0].rewards = rewards
    made[1][0].samples[0].mask = [False] * len(made[1][0].samples[0].token_ids)
    last = made[5][0].samples[1]
    prompt = last.prompt_ids + last.token_ids
    made[5].append(Group(prompt, [_sample(prompt, [9, 8, 40 + j]) for j in range(2)], tree=5, parent=last))
    made[5][1].samples[0].mask = [True, False, True]
    made[5][1].rewards = [0.0, 3.0]
    return made


def _sample(prompt: list[int], ids: list[int]) -> Sample:
    recorded = [-4.6 + 0.4 * (-1) ** (t + ids[0]) for t in range(len(ids))]
    return Sample(
        prompt,
        ids,
        [p - 0.1 * (-1) ** t for t, p in enumerate(recorded)],
        recorded,
        weight=[1.0 + t for t in range(len(ids))],
    )


def work(model: str, out: Path) -> None:
    """One rank: gradients and statistics of each loss, by calls and by shares, and steps with minibatches."""
    engine = Engine.load(model, deterministic=True, lora=LoRA(rank=2, alpha=4, targets=("q", "v", "down")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in engine.parameters():
            leaf.add_(torch.randn(leaf.shape, generator=generator) * 0.2)
    engine.weights_changed()
    record: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        record[name] = {f"gradient, {k}": v for k, v in gradients(engine, loss_of(config), config).items()}
        record[name] |= {f"steps, {k}": v for k, v in steps(engine, config).items()}
    record["own"] = gradients(engine, couple, GRPO())
    (out / f"{engine.world_size}-{engine.rank}.json").write_text(json.dumps(record))
    engine.release()


def gradients(engine: Engine, loss: Loss, config: GRPO | SFT) -> dict[str, Any]:
    """(digest of the gradient, divisor, statistics) of the same groups however they are split."""
    ways = {f"{deal}, {calls} calls": (deal, calls) for calls, deal in enumerate(DEALS, 1)}
    if engine.world_size == 1:
        ways = {f"{calls} calls": ("in turn", calls) for calls in (1, 2, 4)}
    found: dict[str, Any] = {}
    for way, (deal, calls) in ways.items():
        mine = [g for unit in DEALS[deal](units(), engine.rank, engine.world_size) for g in unit]
        if isinstance(config, GRPO):
            prepare(mine, config, parallel=engine.parallel)
        trees = list(dict.fromkeys(g.tree for g in mine))
        sums: dict[str, float] = {}
        for i in range(calls if mine else 1):
            part = [g for g in mine if trees.index(g.tree) % calls == i]
            for key, value in engine.forward_backward(part, loss).items():
                sums[key] = (
                    max(sums.get(key, 0.0), value) if key == "ratio_max_error" else sums.get(key, 0) + value
                )
        maxima = {"ratio_max_error": sums.pop("ratio_max_error", 0.0)}
        statistics = engine.parallel.reduce(sums if mine else {}, maxima)
        divisor = engine.reduce_gradients()
        assert engine.trainer is not None
        found[way] = [_digest(engine.trainer.lora.grad), divisor, *statistics]
        engine.zero_grad()
    return found


def steps(engine: Engine, config: GRPO | SFT) -> dict[str, Any]:
    """(digests of the adapter after each step, statistics) of training with three minibatches."""
    start, found = engine.state_dict(), dict[str, Any]()
    for deal in ["all but one on the last" if engine.world_size == 2 else "in turn"]:
        engine.load_state_dict(start)
        mine = [g for unit in DEALS[deal](units(), engine.rank, engine.world_size) for g in unit]
        changes = {"lr": 1e-2, "minibatches": 3} if isinstance(config, GRPO) else {"lr": 1e-2}
        assert engine.trainer is not None
        optimizer, after = engine.trainer.optimizer, list[str]()
        plain = optimizer.step

        def step(config: Any) -> dict[str, float]:
            after.append(_digest(engine.trainer.lora.grad))  # type: ignore[union-attr] # noqa: B023
            return plain(config)  # noqa: B023

        optimizer.step = step  # type: ignore[method-assign]
        stats = engine.train(mine, config.model_copy(update=changes))
        optimizer.step = plain  # type: ignore[method-assign]
        found[deal] = [after, _digest(engine.trainer.lora.flat), stats]
    engine.load_state_dict(start)
    return found


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(tensor.detach().numpy().tobytes(), digest_size=12).hexdigest()


if __name__ == "__main__":
    model, out = sys.argv[1], Path(sys.argv[2])
    for world in WORLDS:
        ends = [
            child.end(600) for child in fork_ranks(world, out / str(world), lambda rank: work(model, out))
        ]
        if any(end.code for end in ends):
            sys.exit("\n".join(end.errors for end in ends))
