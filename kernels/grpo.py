"""Group-relative advantages and the clipped policy-gradient loss (GRPO: Shao et al., arXiv 2402.03300; PPO clip: arXiv 1707.06347).

    A_i = (r_i - mean) / (std + eps)
    L_t = -w_t * min(ρ_t A_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) A_t) + β w_t (exp(d_t) - d_t - 1),   ρ = exp(new - old),  d = ref - new

Two published conventions of the first line [CODE]: "art" divides by the population deviation and a group of one gets 0;
"verl" by the unbiased deviation, and a group of one keeps its raw score (mean 0, std 1). The KL is the k3 estimator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Convention = Literal["art", "verl"]


def group_advantages(rewards: Sequence[float], convention: Convention = "art", eps: float = 1e-6) -> list[float]:
    """Advantages of one group of rewards (float64 inside). Equal rewards give zeros (but see "verl" for a group of one)."""
    r = torch.tensor(list(rewards), dtype=torch.float64)
    if len(r) == 1:
        return [0.0 if convention == "art" else float(r[0])]
    if bool((r == r[0]).all()):
        return [0.0] * len(r)  # exact: rounding in the mean must not turn equal rewards into a gradient
    deviation = r.std(correction=0 if convention == "art" else 1)
    return [float(a) for a in (r - r.mean()) / (deviation + eps)]


def clipped_loss(
    new: Tensor, old: Tensor, advantage: Tensor, weight: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Per-token clipped loss [N] (weighted) and the mask [N] of tokens where the clip binds; all inputs float32 [N]."""
    ratio = (new - old).exp()
    plain = ratio * advantage
    bounded = ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantage
    return -torch.minimum(plain, bounded) * weight, (bounded < plain).detach()


def kl_k3(new: Tensor, reference: Tensor) -> Tensor:
    """k3 estimator of KL(new || reference) per token: exp(d) - d - 1 with d = reference - new. [CODE]"""
    d = reference - new
    return d.exp() - d - 1
