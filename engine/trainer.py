"""Gradients and steps: forward and backward over packed token trees, sums over ranks, one AdamW step on the
flat adapter.

Gradients are unnormalised sums until `Trainer.reduce`, which adds them over ranks and divides by what the
loss names. In deterministic mode each tree's gradient is added as integers of 2^-40, so that neither the
order of trees nor their dealing to ranks changes a bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proactor.engine.config import AdamW
from proactor.engine.faults import point
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
"""Largest gradient element that the fixed-point sum takes: beyond it, thousands of trees could overflow 63
bits.
"""


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
        """Add the gradient of ``loss`` summed over ``groups``; nothing is stepped.

        ``normalizer`` overrides what these groups add to the divisor (say, because groups without gradient
        were left out but count).
        ``version``: samples of this policy version are compared with what the sampler recorded
        (sampler_trainer_gap).
        """
        tally = Tally()
        self.lora.attach_grad()
        for tree in pack(groups, self.token_budget, together=self.fixed is None):
            self._accumulate(tree, loss, tally, version)
        kind = getattr(loss, "normalizer", "tokens")
        natural = (
            kind
            if isinstance(kind, (int, float))
            else tally.sums["samples" if kind == "samples" else "tokens"]
        )
        self.normalizer += natural if normalizer is None else normalizer
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
            batch.weight = (
                batch.weight / torch.bincount(batch.sample, minlength=len(batch.samples))[batch.sample]
            )
        value, logp, stats = self._loss(rows, flat, loss)
        point("backward")
        value.backward()
        if self.fixed is not None:
            self._fix()
        tally.add(stats)
        tally.sums["loss"] += float(value.detach())
        tally.sums["rows"] += tree.rows
        tally.sums["flat"] += tree.flat_tokens
        _compare(logp.detach(), batch, tally, version)

    def _loss(self, rows: Tensor, flat: Layout, loss: Loss) -> tuple[Tensor, Tensor, Statistics]:
        """(sum, log-probabilities, statistics) of a tree's trained tokens. On the kernels a loss by token is
        taken inside the head, so that each chunk's logits are computed once and their gradient takes their
        place; a loss that may couple tokens needs all log-probabilities first.
        """
        if use_triton(rows) and by_token(loss):
            partial = PartialLoss(loss, flat)
            value, logp = head_loss(self.decoder, rows, flat, autograd_loss(partial))
            return value, logp, partial.statistics
        logp = head_logprobs(self.decoder, rows, flat)
        value, stats = evaluate(loss, logp, flat.batch)
        return value, logp, stats

    def _fix(self) -> None:
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
        """Sum gradients over ranks and divide by the normaliser; ``.grad`` of every leaf is then final.
        Returns the normaliser.
        """
        self.lora.attach_grad()
        total = self.parallel.sum(
            torch.tensor([self.normalizer], dtype=torch.float64, device=self.lora.flat.device)
        ).item()
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
        """Reduce, clip and apply one AdamW step. A non-finite gradient is counted, dropped and does not
        advance the step.
        """
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

    def zero_grad(self) -> None:
        """Forget accumulated gradients and their normaliser."""
        self.lora.attach_grad()
        self.lora.grad.zero_()
        self.normalizer = 0.0
        if self.fixed is not None:
            self.fixed.zero_()


def _compare(logp: Tensor, batch: TokenBatch, tally: Tally, version: int | None) -> None:
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
    """Rate of the update after ``step`` others: linear warm-up, then constant, linear or cosine decay to
    ``final`` of ``lr``.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant" or config.total is None:
        return config.lr
    progress = min(1.0, (step - config.warmup) / max(1, config.total - config.warmup))
    left = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final + (1 - config.final) * left)
