"""Losses on per-token log-probabilities. A loss is any callable ``(logprobs [N], TokenBatch) -> sum`` (a
scalar tensor).

It may also return ``(sum, statistics)`` with sums over tokens (numbers or tensors of one), and carry two
attributes: ``normalizer`` ("tokens", "samples" or a number: what the sum is divided by over all ranks;
"tokens" when absent) and ``needs_reference`` (log-probabilities with the adapter off are then in the batch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from proactor.engine.config import GRPO, SFT
from proactor.engine.tree import Layout, TokenBatch
from proactor.kernels.grpo import STATISTICS, policy_loss

Loss = Callable[[Tensor, TokenBatch], Any]
Statistics = Mapping[str, float | Tensor]


class GRPOLoss:
    """Clipped policy-gradient loss of `GRPO`, weighted by ``batch.weight`` and, where asked for, truncated
    importance weights.
    """

    def __init__(self, config: GRPO) -> None:
        self.config = config
        self.normalizer: str | float = (
            config.constant if config.normalizer == "constant" else config.normalizer
        )
        self.needs_reference = config.beta > 0

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        old = torch.where(batch.old.isnan(), logprobs.detach(), batch.old)
        weight = batch.weight
        if c.importance_cap is not None:
            ratio = (batch.old - batch.sampled).exp().nan_to_num(nan=1.0)
            weight = weight * ratio.clamp(max=c.importance_cap)
        high = c.epsilon if c.epsilon_high is None else c.epsilon_high
        loss, found = policy_loss(
            logprobs, old, batch.advantage, weight, batch.reference, c.epsilon, high, c.beta
        )
        sums = dict(
            zip(STATISTICS, found.unbind(), strict=True)
        )  # unread: the device need not be waited for here
        kl = {} if batch.reference is None else {"kl": sums["kl"]}
        return loss.sum(), {"clip_share": sums["clipped"], **kl}


class SFTLoss:
    """Negative log-likelihood of the unmasked tokens, weighted by ``batch.weight``."""

    needs_reference = False

    def __init__(self, config: SFT) -> None:
        self.normalizer: str | float = (
            config.constant if config.normalizer == "constant" else config.normalizer
        )

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
        return -(logprobs * batch.weight).sum()


# --- how the trainer asks ---


def evaluate(loss: Loss, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, Statistics]:
    """(sum, statistics) of a loss, which may give the sum alone."""
    found = loss(logprobs, batch)
    return found if isinstance(found, tuple) else (found, {})


def by_token(loss: Loss) -> bool:
    """Whether ``loss`` surely is a sum of terms of one token each, so that it may be asked about some tokens
    at a time. A subclass may be anything.
    """
    return type(loss) in (GRPOLoss, SFTLoss)


class PartialLoss:
    """A loss `by_token` as the head asks for it: some pairs of ``flat`` at a time, in their order.
    ``statistics``: summed on the device.
    """

    def __init__(self, loss: Loss, flat: Layout) -> None:
        self.loss = loss
        self.batch = flat.batch.take(flat.unsort.argsort())
        self.statistics: dict[str, Tensor | float] = {}

    def __call__(self, logprobs: Tensor, pairs: slice) -> Tensor:
        value, found = evaluate(self.loss, logprobs, self.batch.take(pairs))
        for name, more in found.items():
            self.statistics[name] = self.statistics.get(name, 0.0) + more
        return value
