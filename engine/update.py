"""From rewards to an update: group advantages, groups to skip, and the statistics of a training step."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from proactor.engine.config import GRPO
from proactor.engine.packing import by_tree
from proactor.engine.parallel import Parallel
from proactor.engine.trainer import Tally
from proactor.engine.types import EngineError, Group, Sample, with_parents
from proactor.kernels.advantages import ragged_advantages
from proactor.kernels.grpo import Convention, group_advantages
from proactor.kernels.op import use_triton

Batch = tuple[list[Group], float | None]
"""(groups of one step, the tokens or samples that they and skipped groups add to the normaliser; None: count
those of these groups)."""
FLOAT32_MAX = torch.finfo(torch.float32).max


class GroupAdvantage(float):
    """An advantage that came from rewards: the next call computes it again, unlike a caller's own."""


def _needs_advantage(sample: Sample) -> bool:
    """Whether the sample's advantage comes from rewards."""
    return sample.advantage is None or isinstance(sample.advantage, GroupAdvantage)


def prepare(
    groups: Sequence[Group], config: GRPO, device: torch.device | str = "cpu"
) -> tuple[list[Group], dict[str, float]]:
    """Set advantages, computed on ``device``.

    Returns the groups that have a trained token, and this rank's sums for the statistics. Raises EngineError
    for greedy samples, and for a reward or an advantage that is missing, NaN, infinite or too large.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    rewards: list[float] = []
    for i, group in enumerate(groups):
        _check(i, group)
    scored = [i for i, g in enumerate(groups) if any(_needs_advantage(s) for s in g.samples)]
    by_group = [[float(s.reward) for s in groups[i].samples if s.reward is not None] for i in scored]
    advantages = _advantages(by_group, config.advantages, torch.device(device))
    for i, values in zip(scored, advantages, strict=True):
        for j, (sample, advantage) in enumerate(zip(groups[i].samples, values, strict=True)):
            if _needs_advantage(sample):
                _check_advantage(i, j, advantage)
                sample.advantage = GroupAdvantage(advantage)
    for group in groups:
        rewards.extend(float(s.reward) for s in group.samples if s.reward is not None)
        sums["groups"] += 1
        sums["flat_groups"] += not group.masked and not _has_gradient(group)
        sums["truncated"] += sum(s.finish_reason in ("length", "context") for s in group.samples)
        sums["all_samples"] += len(group.samples)
    sums["reward"] = sum(rewards)
    sums["reward_squared"] = sum(r * r for r in rewards)
    sums["rewarded"] = len(rewards)
    kept = with_parents(groups, lambda group: not group.masked)
    sums["masked_groups"] = len(groups) - len(kept)
    return kept, dict(sums)


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
        if not _needs_advantage(sample):
            for value in sample.token_advantages():
                _check_advantage(index, j, value)


def _check_advantage(index: int, sample: int, value: float) -> None:
    if not abs(value) <= FLOAT32_MAX:
        raise EngineError(
            f"group {index}, sample {sample}: advantage is {value}; it should be a finite float32 number"
        )


def deal(groups: Sequence[Group], config: GRPO, parallel: Parallel) -> list[Batch]:
    """Split this rank's groups into ``epochs * minibatches`` steps, and leave out groups without gradient.

    Whole units (groups of one `Group.tree` key) are dealt to the minibatches in turn, in an order over all
    ranks that depends on the units' tokens alone. So a minibatch holds the same groups on any number of ranks
    and in whatever order they were sampled; each rank computes its own. Every rank must call this.
    """
    units = by_tree(groups)
    place = {}
    if config.minibatches > 1:
        ranks = parallel.gather([_content(unit) for unit in units], "minibatches")
        order = sorted((key, rank, i) for rank, keys in enumerate(ranks) for i, key in enumerate(keys))
        place = {i: at % config.minibatches for at, (_, rank, i) in enumerate(order) if rank == parallel.rank}
    batches: list[Batch] = []
    for part in range(config.minibatches):
        members = [g for i, unit in enumerate(units) if place.get(i, 0) == part for g in unit]
        kept = with_parents(members, lambda group: config.beta > 0 or _has_gradient(group))
        batches.append((kept, _count(members, config)))
    return batches * config.epochs


def _content(unit: Sequence[Group]) -> tuple[bytes, bytes]:
    """Digests of a unit's tokens and advantages: the same on any rank, and for any order of its groups.

    Tokens come first, because advantages may differ between ranks in their last bit.
    """
    tokens, advantages = [], []
    for group in unit:
        columns = [column for s in group.samples for column in (s.token_ids, s.trained_mask())]
        tokens.append(_digest([group.prompt_ids, *columns], np.int64))
        advantages.append(_digest([s.token_advantages() for s in group.samples], np.float64))
    return b"".join(sorted(tokens)), b"".join(sorted(advantages))


def _digest(columns: Sequence[Sequence[float]], dtype: type[np.generic]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(np.asarray(column, dtype).tobytes())
    return digest.digest()


def _has_gradient(group: Group) -> bool:
    """Whether any token of the group has an advantage other than 0."""
    return any(any(s.token_advantages()) for s in group.samples)


def _count(groups: Sequence[Group], config: GRPO) -> float | None:
    """Trained tokens, or samples that have some, whichever the loss is normalised by."""
    if config.normalizer == "constant":
        return None
    trained = [sum(s.trained_mask()) for g in groups for s in g.samples]
    return float(sum(trained) if config.normalizer == "tokens" else sum(n > 0 for n in trained))


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
    "masked_groups",
    "truncated",
    "all_samples",
    "reward",
    "reward_squared",
    "rewarded",
)


def statistics(tally: Tally) -> dict[str, float]:
    """The tally's sums, with 0 for the names that every rank must have, plus the loss's own statistics."""
    return {**dict.fromkeys(SUMS, 0.0), **tally.sums}


def means(sums: dict[str, float], normalizer: float) -> dict[str, float]:
    """What a training step reports: means and shares from sums over ranks.

    ``normalizer``: the divisor of the loss, added over the steps. Other means are over computed tokens.
    """
    tokens, rewarded = max(sums["tokens"], 1.0), max(sums["rewarded"], 1.0)
    mean = sums["reward"] / rewarded
    extra = {k: v / tokens for k, v in sums.items() if k not in SUMS}
    return {
        "loss": sums["loss"] / (normalizer or 1.0),
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clip_share"] / tokens,
        "kl": sums["kl"] / tokens,
        "sampler_trainer_gap": sums["gap"] / max(sums["gap_tokens"], 1.0),
        "reward_mean": mean,
        "reward_std": math.sqrt(max(0.0, sums["reward_squared"] / rewarded - mean * mean)),
        "zero_spread_share": sums["flat_groups"] / max(sums["groups"], 1.0),
        "masked_groups": sums["masked_groups"],
        "truncated_share": sums["truncated"] / max(sums["all_samples"], 1.0),
        "tokens_trained": sums["tokens"],
        "tokens_computed": sums["rows"],
        "tokens_avoided": sums["flat"] - sums["rows"],
        **extra,
    }
