"""Gradients and steps: forward and backward over token trees, sums over ranks, AdamW on the flat adapter.

Gradients are unnormalised sums until `Trainer.reduce`, which adds them over ranks and divides by the loss's
normaliser. In deterministic mode each tree's gradient is added in fixed point (integers of 2^-40), so that
neither the order of trees nor their assignment to ranks changes a bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proactor.engine.config import AdamW
from proactor.engine.faults import fault_point
from proactor.engine.forward import head_logprobs, head_loss, head_rows, tree_logprobs
from proactor.engine.loss import Loss, PartialLoss, Statistics, by_token, evaluate
from proactor.engine.model import Decoder
from proactor.engine.parallel import Parallel
from proactor.engine.tree import Layout, TokenBatch, Tree, pack
from proactor.engine.types import EngineError, Group
from proactor.kernels.adamw import clipped_adamw
from proactor.kernels.logprob_loss import autograd_loss
from proactor.kernels.op import use_triton

FIXED_POINT = 2.0**40
FIXED_LIMIT = 2.0**21
"""Largest gradient element of the fixed-point sum: larger ones could overflow 63 bits over many trees."""


@dataclass(slots=True)
class Tally:
    """Statistics of some trees, as sums and maxima that can be added over trees and ranks."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, sums: Statistics) -> None:
        """Add to the sums."""
        for name, value in sums.items():
            self.sums[name] += float(value)

    def top(self, name: str, value: float) -> None:
        """Raise a maximum."""
        self.maxima[name] = max(self.maxima.get(name, 0.0), value)


class Trainer:
    """Owns optimizer state and gradient accumulation for one decoder's adapters."""

    def __init__(self, decoder: Decoder, parallel: Parallel, token_budget: int) -> None:
        assert decoder.lora is not None
        self.decoder, self.parallel, self.token_budget = decoder, parallel, token_budget
        self.lora = decoder.lora
        self.m, self.v = torch.zeros_like(self.lora.flat), torch.zeros_like(self.lora.flat)
        self.steps = 0
        self.skipped_steps = 0
        self.normalizer = 0.0
        self.fixed = torch.zeros_like(self.lora.flat, dtype=torch.int64) if decoder.form.exact else None

    def forward_backward(
        self, groups: Sequence[Group], loss: Loss, normalizer: float | None = None, version: int | None = None
    ) -> Tally:
        """Add the gradient of ``loss`` summed over ``groups``, without a step.

        ``normalizer`` overrides what these groups add to the divisor, to which skipped groups may count too.
        ``version``: samples of this policy version are compared with the sampler's log-probabilities.
        """
        tally = Tally()
        self.lora.attach_grad()
        for tree in pack(groups, self.token_budget, together=self.fixed is None):
            self._accumulate(tree, loss, tally, version)
        if normalizer is None:
            kind = getattr(loss, "normalizer", "tokens")
            if isinstance(kind, (int, float)):
                normalizer = kind
            else:
                normalizer = tally.sums["samples" if kind == "samples" else "tokens"]
        self.normalizer += normalizer
        return tally

    def _accumulate(self, tree: Tree, loss: Loss, tally: Tally, version: int | None) -> None:
        reference = None
        if getattr(loss, "needs_reference", False):
            with torch.no_grad():
                reference = tree_logprobs(self.decoder, tree, adapter=False)[0]
        rows, flat = head_rows(self.decoder, tree)
        batch = flat.batch
        batch.reference = reference
        if getattr(loss, "normalizer", "tokens") == "samples":
            lengths = torch.bincount(batch.sample, minlength=len(batch.samples))
            batch.weight = batch.weight / lengths[batch.sample]
        value, logp, stats = self._loss(rows, flat, loss)
        fault_point("backward")
        value.backward()
        if self.fixed is not None:
            self._add_fixed()
        tally.add(stats)
        tally.sums["loss"] += float(value.detach())
        tally.sums["rows"] += tree.rows
        tally.sums["flat"] += tree.flat_tokens
        _compare(logp.detach(), batch, tally, version)

    def _loss(self, rows: Tensor, flat: Layout, loss: Loss) -> tuple[Tensor, Tensor, Statistics]:
        """(sum, log-probabilities, statistics) of a tree's trained tokens.

        On the kernels a loss `by_token` is computed inside the head: each chunk's logits are computed once
        and overwritten by their gradient. A loss that may couple tokens needs all log-probabilities first.
        """
        if use_triton(rows) and by_token(loss):
            partial = PartialLoss(loss, flat)
            value, logp = head_loss(self.decoder, rows, flat, autograd_loss(partial))
            return value, logp, partial.statistics
        logp = head_logprobs(self.decoder, rows, flat)
        value, stats = evaluate(loss, logp, flat.batch)
        return value, logp, stats

    def _add_fixed(self) -> None:
        """Move the float gradient into the fixed-point sum."""
        assert self.fixed is not None
        top = float(self.lora.grad.abs().max())
        if not top < FIXED_LIMIT:
            raise EngineError(
                f"gradient: largest element {top:g} is not finite or above {FIXED_LIMIT:g}; lower the "
                "loss's scale or the rewards"
            )
        self.fixed += (self.lora.grad.double() * FIXED_POINT).round().long()
        self.lora.grad.zero_()

    def reduce(self) -> float:
        """Sum gradients over ranks and divide them by the normaliser, which is returned."""
        self.lora.attach_grad()
        normalizer = torch.tensor([self.normalizer], dtype=torch.float64, device=self.lora.flat.device)
        total = self.parallel.sum(normalizer).item()
        self.normalizer = 0.0
        divisor = total if total > 0 else 1.0
        if self.fixed is not None:
            self.parallel.sum(self.fixed)
            self.lora.grad.copy_((self.fixed.double() / (FIXED_POINT * divisor)).float())
            self.fixed.zero_()
        else:
            self.parallel.sum(self.lora.grad).div_(divisor)
        return total

    def step(self, config: AdamW) -> dict[str, float]:
        """Reduce, clip and apply one AdamW step. A gradient that is not finite is dropped and counted."""
        normalizer = self.reduce()
        rate = learning_rate(config, self.steps)
        norm = float(
            clipped_adamw(
                self.lora.flat,
                self.lora.grad,
                self.m,
                self.v,
                self.steps + 1,
                rate,
                config.betas,
                config.eps,
                config.weight_decay,
                config.max_norm,
            )
        )
        finite = math.isfinite(norm)
        self.steps += finite
        self.skipped_steps += not finite
        self.lora.grad.zero_()
        return {
            "grad_norm": norm,
            "lr": rate,
            "step": float(self.steps),
            "nonfinite_gradient": 0.0 if finite else 1.0,
            "adapter_norm": float(torch.linalg.vector_norm(self.lora.flat)),
            "normalizer": normalizer,
        }

    def state(self) -> dict[str, Any]:
        """What training changes: copies of the adapter and both moments, and the step counters."""
        return {
            "adapter": self.lora.flat.detach().clone(),
            "m": self.m.clone(),
            "v": self.v.clone(),
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`. Raises EngineError, with nothing changed, for an adapter of another size."""
        if state["adapter"].shape != self.lora.flat.shape:
            raise EngineError(
                f"state: adapter of {state['adapter'].numel()} numbers, this engine's has "
                f"{self.lora.flat.numel()}"
            )
        self.lora.flat.copy_(state["adapter"])
        self.m.copy_(state["m"])
        self.v.copy_(state["v"])
        self.zero_grad()
        self.steps, self.skipped_steps = int(state["steps"]), int(state["skipped_steps"])

    def zero_grad(self) -> None:
        """Forget accumulated gradients and their normaliser."""
        self.lora.attach_grad()
        self.lora.grad.zero_()
        self.normalizer = 0.0
        if self.fixed is not None:
            self.fixed.zero_()


def _compare(logp: Tensor, batch: TokenBatch, tally: Tally, version: int | None) -> None:
    """Tally how far the sampler's recorded log-probabilities are from the trainer's."""
    tally.sums["tokens"] += len(logp)
    tally.sums["samples"] += len(batch.samples)
    tally.sums["entropy"] += float(batch.entropy.sum())
    recorded = [version is not None and s.policy_version == version for s in batch.samples]
    current = torch.tensor(recorded, device=logp.device)
    use = current[batch.sample] & ~batch.old.isnan()
    gap = (logp - batch.old)[use]
    tally.sums["gap_tokens"] += len(gap)
    tally.sums["gap"] += float(gap.abs().sum())
    tally.top("ratio_max_error", float(gap.expm1().abs().max()) if len(gap) else 0.0)


def learning_rate(config: AdamW, step: int) -> float:
    """Rate of the update after ``step`` others: linear warm-up, then constant, or decay to ``final * lr``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant" or config.total is None:
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, config.total - config.warmup))
    left = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final + (1 - config.final) * left)
