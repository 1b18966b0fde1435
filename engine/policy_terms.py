"""The terms of GRPO's relatives, in torch: sequence ratios, CISPO's clip, other estimators of the KL.

    ρ_t = exp(c_t),   c_t = new_t - old_t, or for each token of a sequence its mean over the sequence   (GSPO)
    L_t = -w_t min(ρ_t A_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) A_t)                                        "ppo"
    L_t = -w_t sg[clip(ρ_t, 1 - ε_low, 1 + ε_high)] A_t new_t                                          "cispo"
    + β w_t K_t,   d = reference - new:   K = -d  "k1",   d² / 2  "k2",   exp(d) - d - 1  "k3"

With sequence ratios and each token weighing as its share of the sequence, the sum over a sequence is GSPO's
term min(s A, clip(s) A). GSPO: Zheng et al., arXiv 2507.18071; CISPO: MiniMax-M1, arXiv 2506.13585;
estimators: Schulman, "Approximating KL divergence" (2020). [NOTES: none was run beside its
authors' code]
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from proactor.kernels.grpo import clipped_term

Clip = Literal["ppo", "cispo"]
KL = Literal["k1", "k2", "k3"]


def importance(ratio: Tensor, cap: float, masked: bool) -> Tensor:
    """Weights [N] of tokens whose importance ratio is ``ratio`` [N]: at most ``cap``, or 0 beyond it."""
    return ratio * (ratio <= cap) if masked else ratio.clamp(max=cap)


def sequence_means(change: Tensor, sample: Tensor, samples: int) -> Tensor:
    """The mean of ``change`` [N] over each sample (indices below ``samples``), for each of its tokens [N]."""
    count = torch.bincount(sample, minlength=samples).clamp(min=1)
    total = change.new_zeros(samples).index_add(0, sample, change)
    return (total / count)[sample]


def policy_terms(
    new: Tensor,
    change: Tensor,
    advantage: Tensor,
    weight: Tensor,
    reference: Tensor | None,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    clip: Clip,
    kl: KL,
) -> tuple[Tensor, Tensor]:
    """(loss [N], the statistics of `grpo.policy_loss`); all [N], differentiable in ``new`` and ``change``."""
    ratio = change.detach().exp()
    if clip == "ppo":
        term, binds = clipped_term(change, advantage, epsilon_low, epsilon_high)
        loss = -term * weight
    else:
        bounded = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
        loss = -bounded * advantage * new * weight
        binds = bounded != ratio
    divergence = None if reference is None else _divergence(reference - new, kl)
    if divergence is not None:
        loss = loss + beta * divergence * weight
    with torch.no_grad():
        zero = loss.new_zeros(())
        error = (ratio - 1).abs().max() if len(ratio) else zero
        parts = (
            loss.sum(),
            binds.sum(),
            zero if divergence is None else divergence.sum(),
            error,
            zero + len(new),
        )
        return loss, torch.stack([p.double() for p in parts])


def _divergence(d: Tensor, kl: KL) -> Tensor:
    if kl == "k1":
        return -d
    return d.square() / 2 if kl == "k2" else d.exp() - d - 1
