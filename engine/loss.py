"""Losses on per-token log-probabilities. A loss is any callable ``(logprobs [N], TokenBatch) -> sum`` (a scalar tensor).

It may also return ``(sum, statistics)`` with sums over tokens, and carry two attributes: ``normalizer`` ("tokens", "samples" or a number: what the sum
is divided by over all ranks; "tokens" when absent) and ``needs_reference`` (log-probabilities with the adapter off are then in the batch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proactor.engine.config import GRPO, SFT
from proactor.engine.tree import TokenBatch
from proactor.kernels.grpo import STATISTICS, policy_loss

Loss = Callable[[Tensor, TokenBatch], Any]


class GRPOLoss:
    """Clipped policy-gradient loss of `GRPO`, weighted by ``batch.weight`` and, where asked for, truncated importance weights."""

    def __init__(self, config: GRPO) -> None:
        self.config = config
        self.normalizer: str | float = config.constant if config.normalizer == "constant" else config.normalizer
        self.needs_reference = config.beta > 0

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        c = self.config
        old = torch.where(batch.old.isnan(), logprobs.detach(), batch.old)
        weight = batch.weight
        if c.importance_cap is not None:
            ratio = (batch.old - batch.sampled).exp().nan_to_num(nan=1.0)
            weight = weight * ratio.clamp(max=c.importance_cap)
        high = c.epsilon if c.epsilon_high is None else c.epsilon_high
        loss, found = policy_loss(logprobs, old, batch.advantage, weight, batch.reference, c.epsilon, high, c.beta)
        sums = dict(zip(STATISTICS, found.tolist(), strict=True))
        kl = {} if batch.reference is None else {"kl": sums["kl"]}
        return loss.sum(), {"clip_share": sums["clipped"], **kl}


class SFTLoss:
    """Negative log-likelihood of the unmasked tokens, weighted by ``batch.weight``."""

    needs_reference = False

    def __init__(self, config: SFT) -> None:
        self.normalizer: str | float = config.constant if config.normalizer == "constant" else config.normalizer

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
        return -(logprobs * batch.weight).sum()
