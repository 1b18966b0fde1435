"""From rewards to an update: group advantages, groups to skip, and the statistics of a training step."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from proactor.engine.advantages import overlong_penalty, set_advantages
from proactor.engine.config import GRPO
from proactor.engine.packing import by_tree
from proactor.engine.parallel import Parallel
from proactor.engine.trainer import Tally
from proactor.engine.types import Group, with_parents

Batch = tuple[list[Group], float | None]
"""(groups of one step, the tokens or samples that they and skipped groups add to the normaliser; None: count
those of these groups)."""


def prepare(
    groups: Sequence[Group],
    config: GRPO,
    device: torch.device | str = "cpu",
    parallel: Parallel | None = None,
) -> tuple[list[Group], dict[str, float]]:
    """Set advantages, computed on ``device`` (`set_advantages`, whose errors it raises).

    Returns the groups that have a trained token, and this rank's sums for the statistics.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    rewards: list[float] = []
    set_advantages(groups, config, torch.device(device), parallel)
    for group in groups:
        rewards.extend(float(s.reward) for s in group.samples if s.reward is not None)
        sums["groups"] += 1
        sums["flat_groups"] += not group.masked and not _has_gradient(group)
        sums["truncated"] += sum(s.finish_reason in ("length", "context") for s in group.samples)
        sums["all_samples"] += len(group.samples)
        if config.overlong is not None:
            penalties = [overlong_penalty(sum(s.trained_mask()), config.overlong) for s in group.samples]
            sums["overlong"] += sum(penalty < 0 for penalty in penalties)
    sums["reward"] = sum(rewards)
    sums["reward_squared"] = sum(r * r for r in rewards)
    sums["rewarded"] = len(rewards)
    kept = with_parents(groups, lambda group: not group.masked)
    sums["masked_groups"] = len(groups) - len(kept)
    return kept, dict(sums)


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
    always = config.beta > 0 or config.entropy_bonus > 0
    batches: list[Batch] = []
    for part in range(config.minibatches):
        members = [g for i, unit in enumerate(units) if place.get(i, 0) == part for g in unit]
        kept = with_parents(members, lambda group: always or _has_gradient(group))
        batches.append((kept, _count(members, config)))
    return batches * config.epochs


def _content(unit: Sequence[Group]) -> tuple[bytes, bytes]:
    """Digests of a unit's tokens, and of its advantages and weights: the same on any rank, and for any order
    of its groups. Tokens come first, because advantages may differ between ranks in their last bit.
    """
    tokens, advantages = [], []
    for group in unit:
        columns = [column for s in group.samples for column in (s.token_ids, s.trained_mask())]
        tokens.append(_digest([group.prompt_ids, *columns], np.int64))
        weighted = [column for s in group.samples for column in (s.token_advantages(), s.token_weights())]
        advantages.append(_digest(weighted, np.float64))
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
    """Trained tokens, their turns, or samples that have some, whichever the loss is normalised by."""
    if config.normalizer == "constant":
        return None
    if config.normalizer == "turns":
        return float(sum(len(s.turns()) for g in groups for s in g.samples))
    trained = [sum(s.trained_mask()) for g in groups for s in g.samples]
    return float(sum(trained) if config.normalizer == "tokens" else sum(n > 0 for n in trained))


SUMS = (
    "loss",
    "tokens",
    "samples",
    "turns",
    "entropy",
    "gap",
    "gap_tokens",
    "rows",
    "flat",
    "clip_share",
    "capped_share",
    "kl",
    "groups",
    "flat_groups",
    "masked_groups",
    "truncated",
    "overlong",
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
        "capped_share": sums["capped_share"] / tokens,
        "kl": sums["kl"] / tokens,
        "sampler_trainer_gap": sums["gap"] / max(sums["gap_tokens"], 1.0),
        "reward_mean": mean,
        "reward_std": math.sqrt(max(0.0, sums["reward_squared"] / rewarded - mean * mean)),
        "zero_spread_share": sums["flat_groups"] / max(sums["groups"], 1.0),
        "masked_groups": sums["masked_groups"],
        "truncated_share": sums["truncated"] / max(sums["all_samples"], 1.0),
        "overlong_share": sums["overlong"] / max(sums["all_samples"], 1.0),
        "tokens_trained": sums["tokens"],
        "tokens_computed": sums["rows"],
        "tokens_avoided": sums["flat"] - sums["rows"],
        **extra,
    }
