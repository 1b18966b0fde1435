"""Losses on per-token log-probabilities. A loss is any callable ``(logprobs [N], TokenBatch) -> sum``.

The sum is a scalar tensor. A loss may also return ``(sum, statistics)``, where statistics are named sums over
tokens, and may have two attributes: ``normalizer`` and ``needs_reference`` (the batch then has
log-probabilities with the adapter off).

``normalizer`` names the divisor of the sum over all trees, calls and ranks between two steps: "tokens" (the
default: trained tokens), "samples" or "turns" (those with a trained token; each one's sum is then its token
mean), or a number, which divides the whole sum once.

A loss may depend on ``batch.entropy`` too, whose gradient goes through the whole distribution of each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proactor.engine.arguments import instance, short
from proactor.engine.config import GRPO, SFT
from proactor.engine.layout import Layout, TokenBatch
from proactor.engine.policy_terms import importance, policy_terms, sequence_means
from proactor.engine.types import EngineError
from proactor.kernels.grpo import STATISTICS, policy_loss

Loss = Callable[[Tensor, TokenBatch], Any]
Statistics = Mapping[str, float | Tensor]
NAMES = frozenset(
    ("loss", "tokens", "samples", "turns", "entropy", "gap", "gap_tokens", "rows", "flat", "masked_groups")
)
"""The sums that the trainer tallies itself."""
UNITS = ("tokens", "samples", "turns")
"""What a loss may be divided by the number of."""


class GRPOLoss:
    """Clipped policy-gradient loss of `GRPO`, with its KL and its entropy bonus.

    Each term of a token is weighted by ``batch.weight`` and its capped importance weight.

    ``by_token``: each token's term depends on nothing of the others.
    """

    def __init__(self, config: GRPO) -> None:
        self.config = config
        self.normalizer = _normalizer(config)
        self.needs_reference = config.beta > 0
        self.by_token = config.ratio == "token"

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over the tokens of ``logprobs`` [N], and the sums its statistics are made of."""
        c = self.config
        old = torch.where(batch.old.isnan(), logprobs.detach(), batch.old)
        weight, extra = batch.weight, dict[str, Tensor]()
        shift, cap = _shift(c, old, batch), c.truncation
        if shift is not None and cap is not None:
            ratio = shift.exp().nan_to_num(nan=1.0)
            weight = weight * importance(ratio, cap, c.importance == "masked")
            extra["capped_share"] = (ratio > cap).sum()
        high = c.epsilon if c.epsilon_high is None else c.epsilon_high
        settings = c.epsilon, high, c.beta
        if c.ratio == "token" and c.clip == "ppo" and (c.kl == "k3" or batch.reference is None):
            loss, statistics = policy_loss(logprobs, old, batch.advantage, weight, batch.reference, *settings)
        else:
            change = logprobs - old
            if c.ratio == "sequence":
                change = sequence_means(change, batch.sample, len(batch.samples))
            loss, statistics = policy_terms(
                logprobs, change, batch.advantage, weight, batch.reference, *settings, c.clip, c.kl
            )
        sums = dict(zip(STATISTICS, statistics.unbind(), strict=True))  # tensors: no sync with the GPU here
        if batch.reference is not None:
            extra["kl"] = sums["kl"]
        total = loss.sum()
        if c.entropy_bonus > 0:
            total = total - c.entropy_bonus * (batch.entropy * weight).sum()
        return total, {"clip_share": sums["clipped"], **extra}


def _shift(config: GRPO, old: Tensor, batch: TokenBatch) -> Tensor | None:
    """The logarithms [N] of the importance ratios, NaN where nothing was recorded; None: no weight."""
    if config.importance_cap == "auto":  # filters give no weight
        return None if batch.recorded is None else old - batch.recorded
    if config.importance_cap is None:
        return None
    return (old if config.old_policy == "recomputed" else batch.old) - batch.sampled


class SFTLoss:
    """Negative log-likelihood of the unmasked tokens, weighted by ``batch.weight``."""

    needs_reference = False

    def __init__(self, config: SFT) -> None:
        self.normalizer = _normalizer(config)

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
        """Weighted negative log-likelihood of ``logprobs`` [N] in nats, summed."""
        return -(logprobs * batch.weight).sum()


class SlopeLoss:
    """The log-probabilities times ``batch.weight``: to first order the loss whose slopes those are.

    ``entropy``: plus the entropies times ``batch.advantage``, the slopes in those.
    """

    needs_reference = False

    def __init__(self, entropy: bool = False) -> None:
        self.entropy = entropy

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
        """The sum over the tokens of ``logprobs`` [N]."""
        total = (logprobs * batch.weight).sum()
        return total + (batch.entropy * batch.advantage).sum() if self.entropy else total


def slopes(
    loss: Loss, logprobs: Tensor, batch: TokenBatch
) -> tuple[Tensor, Tensor, Tensor | None, Statistics]:
    """(sum, its gradient in ``logprobs`` [N] and in ``batch.entropy`` [N], statistics) of any loss.

    The second gradient is None where it does not depend on the entropies.

    Raises EngineError as `evaluate`, and for a sum without gradient.
    """
    with torch.enable_grad():
        leaves = logprobs.detach().requires_grad_(), batch.entropy.detach().requires_grad_()
        value, statistics = evaluate(loss, leaves[0], replace(batch, entropy=leaves[1]))
        refuse_constant(value)
        slope, spread = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), torch.zeros_like(logprobs) if slope is None else slope, spread, statistics


def refuse_constant(value: Tensor) -> None:
    """Raise EngineError for a sum without gradient."""
    if not value.requires_grad:
        raise EngineError(
            "loss: its sum has no gradient; compute it from the log-probabilities with torch "
            "(no .item(), .detach(), .tolist() or no_grad)"
        )


def _normalizer(config: GRPO | SFT) -> str | float:
    return config.constant if config.normalizer == "constant" else config.normalizer


def normalizer_of(loss: Loss) -> str | float:
    """The loss's ``normalizer``. Raises EngineError unless it is one of `UNITS` or a number above 0."""
    name = getattr(loss, "normalizer", "tokens")
    if isinstance(name, int | float) and not isinstance(name, bool) and 0 < name < math.inf:
        return float(name)
    if name not in UNITS:
        raise EngineError(
            f"loss.normalizer: {name!r} is not {', '.join(map(repr, UNITS))} or a number above 0"
        )
    return str(name)


def evaluate(loss: Loss, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, Statistics]:
    """(sum, statistics) of a loss; no statistics where it returns the sum alone.

    Raises EngineError for any other result, and for a statistic that has one of the trainer's `NAMES`.
    """
    result = loss(logprobs, batch)
    value, statistics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(value, Tensor):
        raise EngineError(f"loss: returned {type(value).__name__}; it should return a scalar tensor, the sum")
    if value.dim():
        raise EngineError(f"loss: returned a tensor of shape {tuple(value.shape)}, not a scalar: sum it")
    instance(statistics, Mapping, "loss: its statistics")
    for name in NAMES.intersection(statistics):
        raise EngineError(f"loss: statistic {name!r} is the trainer's own; give it another name")
    return value, {name: _plain(name, number) for name, number in statistics.items()}


def _plain(name: str, value: Any) -> float | Tensor:
    """A statistic without its graph. Raises EngineError unless it is one number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach()
    if isinstance(value, int | float | np.number):
        return float(value)
    kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else short(value)
    raise EngineError(f"loss: statistic {name!r} should be one number, not {kind}")


def by_token(loss: Loss) -> bool:
    """Whether ``loss`` is known to be a sum of one term a token, so that tokens can be computed in parts.

    Only the built-in losses are: a subclass may couple tokens.
    """
    return type(loss) in (SFTLoss, SlopeLoss) or (type(loss) is GRPOLoss and loss.by_token)


class PartialLoss:
    """A loss that is `by_token`, on slices of the pairs of ``flat``. ``statistics`` add up on the device."""

    def __init__(self, loss: Loss, flat: Layout) -> None:
        self.loss = loss
        self.batch = flat.batch.take(flat.unsort.argsort())
        self.statistics: dict[str, Tensor | float] = {}

    def __call__(self, logprobs: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
        """The loss of the pairs ``pairs``, whose log-probabilities and entropies these are; adds to
        `statistics`.
        """
        value, statistics = evaluate(self.loss, logprobs, replace(self.batch.take(pairs), entropy=entropy))
        for name, part in statistics.items():
            self.statistics[name] = self.statistics.get(name, 0.0) + part
        return value
