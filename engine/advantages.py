"""Rewards to advantages: overlong shaping, comparison within a group or over the step, credit of branches.

    r'  = r + penalty * min(0, max(-1, (limit - cache - length) / cache))        overlong shaping
    A_i = (r_i - mean) / (std + eps)                                             "reinforce"
    A_i = (c_i - mean(c)) / (std(c) + eps),   c_i = r_i - mean of its group      "reinforce_baseline"

Mean and population deviation of the last two are over all rewarded samples of the step, on all ranks, however
many tokens they have (verl and OpenRLHF weigh samples by their tokens). The comparisons within a group are
those of `kernels/grpo.py`. Overlong shaping: DAPO's soft punishment, arXiv 2503.14476, equation 13 [NOTES],
where the penalty is 1. REINFORCE++ and its form with a baseline: Hu et al., arXiv 2501.03262 [NOTES].
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import torch

from proactor.engine.config import GRPO, Overlong
from proactor.engine.parallel import Parallel
from proactor.engine.types import EngineError, Group, Sample
from proactor.kernels.advantages import ragged_advantages
from proactor.kernels.grpo import Convention, group_advantages
from proactor.kernels.op import use_triton

EPS = 1e-6
FLOAT32_MAX = torch.finfo(torch.float32).max


class GroupAdvantage(float):
    """An advantage that came from rewards: the next call computes it again, unlike a caller's own."""


def needs_advantage(sample: Sample) -> bool:
    """Whether the sample's advantage comes from rewards."""
    return sample.advantage is None or isinstance(sample.advantage, GroupAdvantage)


def set_advantages(
    groups: Sequence[Group], config: GRPO, device: torch.device, parallel: Parallel | None = None
) -> None:
    """Give samples without an advantage of their own one from the rewards of their groups.

    With "reinforce" and "reinforce_baseline" every rank of ``parallel`` must call this. Raises EngineError
    for greedy samples, and for a reward or an advantage that is missing, NaN, infinite or too large.
    """
    branched: set[int] = set()
    if config.branch_credit != "own":
        branched = {id(g.parent) for g in groups if g.parent is not None}
    members = [[(j, s) for j, s in enumerate(g.samples) if id(s) not in branched] for g in groups]
    for i, (group, compared) in enumerate(zip(groups, members, strict=True)):
        _check(i, group, compared)
    scored = [i for i, compared in enumerate(members) if any(needs_advantage(s) for _, s in compared)]
    rewards = [[shaped_reward(s, config.overlong) for _, s in members[i]] for i in scored]
    for i, values in zip(scored, _advantages(rewards, config, device, parallel), strict=True):
        for (j, sample), advantage in zip(members[i], values, strict=True):
            if needs_advantage(sample):
                _check_advantage(i, j, advantage)
                sample.advantage = GroupAdvantage(advantage)
    if branched:
        _credit_branches(groups, branched, mean=config.branch_credit == "mean")


def overlong_penalty(length: int, overlong: Overlong) -> float:
    """What a completion of ``length`` tokens adds to its reward: 0 to minus the penalty."""
    over = (overlong.limit - overlong.cache - length) / overlong.cache
    return overlong.penalty * min(0.0, max(-1.0, over))


def shaped_reward(sample: Sample, overlong: Overlong | None) -> float:
    """The sample's reward, with `overlong_penalty` of its trained tokens; ``reward`` itself stays."""
    reward = float(sample.reward or 0.0)
    return reward if overlong is None else reward + overlong_penalty(sum(sample.trained_mask()), overlong)


def _advantages(
    rewards: list[list[float]], config: GRPO, device: torch.device, parallel: Parallel | None
) -> list[list[float]]:
    """Advantages of each group."""
    if config.advantages == "reinforce_baseline":
        rewards = _within_groups(rewards, "mean", device)
    elif config.advantages != "reinforce":
        return _within_groups(rewards, config.advantages, device)
    mine = [r for group in rewards for r in group]
    everyone = [mine] if parallel is None else parallel.gather(mine, "rewards")
    values = [r for rank in everyone for r in rank]
    if all(value == values[0] for value in values):
        return [[0.0] * len(group) for group in rewards]  # rounding in the mean must not become a gradient
    # exactly rounded sums: the order of ranks and groups changes no bit
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [[(r - mean) / (deviation + EPS) for r in group] for group in rewards]


def _within_groups(
    rewards: list[list[float]], convention: Convention, device: torch.device
) -> list[list[float]]:
    """Advantages of each group: all in one launch where the kernels run, else one by one in float64."""
    flat = torch.tensor([r for group in rewards for r in group], dtype=torch.float64, device=device)
    if not use_triton(flat):
        return [group_advantages(group, convention) for group in rewards]
    sizes = [len(group) for group in rewards]
    advantages = ragged_advantages(flat, torch.tensor([0, *sizes]).cumsum(0), convention).tolist()
    return [advantages[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _credit_branches(groups: Sequence[Group], branched: set[int], mean: bool) -> None:
    """Give each sample that others continue the sum, or the ``mean``, of its branches' advantages.

    Branches are the samples at the ends of its tree, each with the mean advantage of its own trained tokens.
    """
    total: defaultdict[int, float] = defaultdict(float)
    ends: defaultdict[int, int] = defaultdict(int)
    for group in reversed(groups):  # a parent stands before its children
        for sample in group.samples:
            key, trained = id(sample), sum(sample.trained_mask())
            if key in branched:
                share = max(1, ends[key]) if mean else 1
                sample.advantage = GroupAdvantage(total[key] / share)
            elif trained:
                total[key], ends[key] = math.fsum(sample.token_advantages()) / trained, 1
            if group.parent is not None:
                total[id(group.parent)] += total[key]
                ends[id(group.parent)] += ends[key]


def _check(index: int, group: Group, compared: Sequence[tuple[int, Sample]]) -> None:
    """Raise EngineError for what cannot be trained on; ``compared``: the samples that need a reward."""
    for j, sample in enumerate(group.samples):
        if sample.temperature <= 0:
            raise EngineError(
                f"group {index}, sample {j}: greedy samples (temperature 0) cannot be trained on"
            )
    scored = any(needs_advantage(sample) for _, sample in compared)
    for j, sample in compared:
        if scored and (sample.reward is None or not abs(sample.reward) <= FLOAT32_MAX):
            raise EngineError(
                f"group {index}, sample {j}: reward is {sample.reward}; all samples of a group need a "
                "finite float32 reward, or all an advantage"
            )
        if not needs_advantage(sample):
            for value in sample.token_advantages():
                _check_advantage(index, j, value)


def _check_advantage(index: int, sample: int, value: float) -> None:
    if not abs(value) <= FLOAT32_MAX:
        raise EngineError(
            f"group {index}, sample {sample}: advantage is {value}; it should be a finite float32 number"
        )
