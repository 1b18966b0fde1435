"""From rewards to an update: group advantages, groups to skip, and the statistics of a training step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch

from proactor.engine.config import GRPO
from proactor.engine.trainer import Tally
from proactor.engine.types import EngineError, Group, Sample
from proactor.kernels.advantages import ragged_advantages
from proactor.kernels.grpo import Convention, group_advantages
from proactor.kernels.op import use_triton

Batch = tuple[list[Group], float | None]
"""(groups of one step, their part of the normaliser with skipped groups; None: these groups' own)."""


class GroupAdvantage(float):
    """An advantage that came from rewards: the next call computes it again, unlike a caller's own."""


def _needs_advantage(sample: Sample) -> bool:
    """Whether the sample's advantage comes from rewards."""
    return sample.advantage is None or isinstance(sample.advantage, GroupAdvantage)


def prepare(
    groups: Sequence[Group], config: GRPO, device: torch.device | str = "cpu"
) -> tuple[list[Batch], dict[str, float]]:
    """Set advantages, skip groups without gradient, and split the rest into ``epochs * minibatches`` steps.

    Advantages are computed on ``device``. Returns the batches and sums for the statistics. Raises EngineError
    for a missing, NaN or infinite reward and for greedy samples.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    rewards: list[float] = []
    for i, group in enumerate(groups):
        _check(i, group)
    scored = [g for g in groups if any(_needs_advantage(s) for s in g.samples)]
    by_group = [[float(s.reward) for s in g.samples if s.reward is not None] for g in scored]
    advantages = _advantages(by_group, config.advantages, torch.device(device))
    for group, values in zip(scored, advantages, strict=True):
        for sample, advantage in zip(group.samples, values, strict=True):
            if _needs_advantage(sample):
                sample.advantage = GroupAdvantage(advantage)
    for group in groups:
        rewards.extend(float(s.reward) for s in group.samples if s.reward is not None)
        sums["groups"] += 1
        sums["flat_groups"] += not any(any(s.token_advantages()) for s in group.samples)
        sums["truncated"] += sum(s.finish_reason in ("length", "context") for s in group.samples)
        sums["all_samples"] += len(group.samples)
    sums["reward"] = sum(rewards)
    sums["reward_squared"] = sum(r * r for r in rewards)
    sums["rewarded"] = len(rewards)
    batches = [b for _ in range(config.epochs) for b in _minibatches(groups, config)]
    return batches, dict(sums)


def _advantages(
    rewards: list[list[float]], convention: Convention, device: torch.device
) -> list[list[float]]:
    """Advantages of each group: all in one launch where the kernels run, else one by one in float64."""
    flat = torch.tensor([r for group in rewards for r in group], dtype=torch.float64, device=device)
    if not use_triton(flat):
        return [group_advantages(group, convention) for group in rewards]
    sizes = [len(group) for group in rewards]
    advantages = ragged_advantages(flat, torch.tensor([0, *sizes]).cumsum(0), convention).tolist()
    return [advantages[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _check(index: int, group: Group) -> None:
    scored = any(_needs_advantage(s) for s in group.samples)
    for j, sample in enumerate(group.samples):
        if sample.temperature <= 0:
            raise EngineError(
                f"group {index}, sample {j}: greedy samples (temperature 0) cannot be trained on"
            )
        if scored and (sample.reward is None or not math.isfinite(sample.reward)):
            raise EngineError(
                f"group {index}, sample {j}: reward is {sample.reward}; all samples of a group need a "
                "finite reward, or all an advantage"
            )


def _minibatches(groups: Sequence[Group], config: GRPO) -> list[Batch]:
    """Deal whole trees to ``minibatches`` steps, in order."""
    units: dict[Hashable, list[Group]] = {}
    for i, group in enumerate(groups):
        units.setdefault(("key", group.tree) if group.tree is not None else ("index", i), []).append(group)
    ordered = list(units.values())
    parts = [ordered[i :: config.minibatches] for i in range(config.minibatches)]
    out: list[Batch] = []
    for part in parts:
        members = [g for unit in part for g in unit]
        parents = {id(g.parent) for g in members if g.parent is not None}
        kept = [g for g in members if config.beta > 0 or _has_gradient(g, parents)]
        out.append((kept, _normalizer(members, config)))
    return out


def _has_gradient(group: Group, parents: set[int]) -> bool:
    """Whether a group has a gradient, or is needed as another one's parent."""
    return any(id(s) in parents or any(s.token_advantages()) for s in group.samples)


def _normalizer(groups: Sequence[Group], config: GRPO) -> float:
    samples: list[Sample] = [s for g in groups for s in g.samples]
    if config.normalizer == "constant":
        return config.constant
    return float(len(samples) if config.normalizer == "samples" else sum(sum(s.trained()) for s in samples))


SUMS = (
    "loss",
    "tokens",
    "samples",
    "entropy",
    "gap",
    "gap_tokens",
    "rows",
    "flat",
    "clip_share",
    "kl",
    "groups",
    "flat_groups",
    "truncated",
    "all_samples",
    "reward",
    "reward_squared",
    "rewarded",
)


def statistics(tally: Tally) -> dict[str, float]:
    """The tally's sums, with 0 for the names that every rank must have, plus the loss's own statistics."""
    return {**dict.fromkeys(SUMS, 0.0), **tally.sums}


def means(sums: dict[str, float]) -> dict[str, float]:
    """What a training step reports: means and shares from sums over ranks."""
    tokens, rewarded = max(sums["tokens"], 1.0), max(sums["rewarded"], 1.0)
    mean = sums["reward"] / rewarded
    extra = {k: v / tokens for k, v in sums.items() if k not in SUMS}
    return {
        "loss": sums["loss"] / tokens,
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clip_share"] / tokens,
        "kl": sums["kl"] / tokens,
        "sampler_trainer_gap": sums["gap"] / max(sums["gap_tokens"], 1.0),
        "reward_mean": mean,
        "reward_std": math.sqrt(max(0.0, sums["reward_squared"] / rewarded - mean * mean)),
        "zero_spread_share": sums["flat_groups"] / max(sums["groups"], 1.0),
        "truncated_share": sums["truncated"] / max(sums["all_samples"], 1.0),
        "tokens_trained": sums["tokens"],
        "tokens_computed": sums["rows"],
        "tokens_avoided": sums["flat"] - sums["rows"],
        **extra,
    }
