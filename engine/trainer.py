"""Gradients: forward and backward over token trees, sums over ranks; each step is the optimizer's.

Gradients are unnormalised sums over trees and calls until `Trainer.reduce`, which adds them over ranks and
divides once by the normaliser that the loss names. Clipping comes after that, so the same groups give one
gradient however they are dealt. In deterministic mode each tree's gradient is added in fixed point (integers
of 2^-40), so that neither the order of trees nor their assignment to ranks changes a bit.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from proactor.engine.adapter_names import POLICY
from proactor.engine.config import AdamW
from proactor.engine.layout import TokenBatch
from proactor.engine.loss import Loss, Statistics, normalizer_of
from proactor.engine.memory import naming_shortage
from proactor.engine.model import Decoder
from proactor.engine.optimizer import Optimizer
from proactor.engine.parallel import Parallel, describe, larger
from proactor.engine.ranges import ranged
from proactor.engine.tree import Tree
from proactor.engine.tree_gradient import OldPolicy, backward
from proactor.engine.types import EngineError, Group, with_parents

T = TypeVar("T")
Trees = Callable[[Sequence[Group]], Iterable[Tree]]
FIXED_POINT = 2.0**40
FIXED_LIMIT = 2.0**22
"""What the largest gradient elements of a step's trees, of all ranks, may add up to: half of 63 bits."""


@dataclass(slots=True)
class Tally:
    """Statistics of some trees, as sums and maxima that can be added over trees and ranks."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, sums: Statistics) -> None:
        """Add to the sums. Tensors are read together: each alone would be a wait for a GPU."""
        tensors = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
        read = torch.stack([v.detach().double() for v in tensors.values()]).tolist() if tensors else []
        for name, value in {**sums, **dict(zip(tensors, read, strict=True))}.items():
            self.sums[name] += float(value)

    def top(self, name: str, value: float) -> None:
        """Raise a maximum."""
        self.maxima[name] = larger(self.maxima.get(name, 0.0), value)

    def merge(self, other: Tally) -> None:
        """Add another tally's sums and take over its larger maxima."""
        self.add(other.sums)
        for name, value in other.maxima.items():
            self.top(name, value)


class Trainer:
    """Accumulates the gradient of one decoder's adapter, and hands it to its `Optimizer`.

    ``trees`` packs groups for passes with gradient (`Policy.trees`). ``chunk_rows``: as
    `Budgets.chunk_of`. ``name``: the adapter's; ranks reduce gradients of one name alone.
    """

    def __init__(
        self,
        decoder: Decoder,
        parallel: Parallel,
        trees: Trees,
        chunk_rows: Callable[[Tree], int],
        name: str = POLICY,
    ) -> None:
        assert decoder.lora is not None
        self.decoder, self.parallel, self.trees, self.chunk_rows = decoder, parallel, trees, chunk_rows
        self.lora, self.name = decoder.lora, name
        self.optimizer = Optimizer(self.lora)
        self.normalizer: str | float | None = None  # of the gradient accumulated so far; None: nothing is
        self.counted = 0.0  # this rank's tokens or samples, when they are the normaliser
        self.failure = ""  # why the accumulated gradient lacks a part
        self.nonfinite = False  # whether a part of it is not finite, which the fixed-point sum cannot hold
        self.fixed = torch.zeros_like(self.lora.flat, dtype=torch.int64) if decoder.form.exact else None
        self.fixed_top = 0.0  # largest elements of what the fixed-point sum has, added up
        self.cleared = 0  # how often the accumulated gradient was taken or forgotten
        self.seconds_waited = 0.0  # in `meet`, so far

    def meet(self, value: T, phase: str) -> list[T]:
        """`Parallel.gather` before gradients are summed: here this rank waits for the slowest one's."""
        began = time.perf_counter()
        with ranged("train: wait for ranks"):
            values = self.parallel.gather(value, phase)
        self.seconds_waited += time.perf_counter() - began
        return values

    def forward_backward(
        self,
        groups: Sequence[Group],
        loss: Loss,
        counted: float | None = None,
        version: int | None = None,
        old: OldPolicy | None = None,
    ) -> Tally:
        """Add the gradient of ``loss`` summed over ``groups``, without a step.

        Groups without a trained token are left out and counted as ``masked_groups``. ``counted``: the tokens
        or samples that these groups add to the normaliser, when skipped groups count too. ``version``:
        tokens of this policy version are compared with the sampler's log-probabilities. ``old``: as
        `tree_gradient.backward`. Raises EngineError for a loss of another normaliser than the gradient
        accumulated so far.
        """
        normalizer, tally = normalizer_of(loss), Tally()
        if self.normalizer not in (None, normalizer):
            raise EngineError(
                f"loss.normalizer: {normalizer!r}, but the gradient accumulated so far has "
                f"{self.normalizer!r}: step or zero_grad first"
            )
        kept = with_parents(groups, lambda group: not group.masked)
        tally.sums["masked_groups"] += len(groups) - len(kept)
        self.lora.attach_grad()
        self.lora.unfold()  # plans of a gradient do not count it
        try:
            for tree in self.trees(kept):
                what = f"a pass over a tree of {tree.rows} rows"
                with naming_shortage(self.decoder.device, what, "set token_budget to less"):
                    self._accumulate(tree, loss, tally, version, old)
        except Exception as error:
            self.failure = describe(error)
            raise
        if isinstance(normalizer, str):
            self.counted += tally.sums[normalizer] if counted is None else counted
        self.normalizer = normalizer
        return tally

    def _accumulate(
        self, tree: Tree, loss: Loss, tally: Tally, version: int | None, old: OldPolicy | None
    ) -> None:
        with ranged("train: tree"):
            done = backward(self.decoder, tree, loss, self.chunk_rows(tree), old)
        if self.fixed is not None:
            self._add_fixed()
        tally.add(done.statistics)
        tally.sums["loss"] += done.value
        tally.sums["rows"] += tree.rows
        tally.sums["flat"] += tree.flat_tokens
        _compare(done.logprobs, done.batch, tally, version)

    def _add_fixed(self) -> None:
        """Move the float gradient into the fixed-point sum. Raises EngineError for one that is too large."""
        assert self.fixed is not None
        top = float(self.lora.grad.abs().max())
        if not math.isfinite(top):
            self.nonfinite = True
            self.lora.grad.zero_()
            return
        self.fixed_top += top
        if self.fixed_top >= (limit := FIXED_LIMIT / self.parallel.world_size):
            raise EngineError(
                f"gradient: the largest elements of this step's trees add up to {self.fixed_top:g}, above "
                f"{limit:g}; lower the loss's scale or the rewards"
            )
        self.fixed += (self.lora.grad.double() * FIXED_POINT).round().long()
        self.lora.grad.zero_()

    def reduce(self) -> float:
        """Sum gradients over ranks and divide them by the normaliser, which is returned.

        Raises EngineError, on every rank and with nothing changed, after a `forward_backward` that raised
        (until `zero_grad`), and when the ranks' losses named different normalisers.
        """
        with ranged("train: reduce"):
            return self._reduce()

    def _reduce(self) -> float:
        total, nonfinite = self._divisor()
        self.normalizer, self.counted, self.nonfinite = None, 0.0, False
        self.cleared += 1
        self.lora.attach_grad()
        divisor = total if total > 0 else 1.0
        if self.fixed is not None:
            self.parallel.sum(self.fixed, "sum of gradients")
            self.lora.grad.copy_((self.fixed.double() / (FIXED_POINT * divisor)).float())
            self.fixed.zero_()
            self.fixed_top = 0.0
        else:
            self.parallel.sum(self.lora.grad, "sum of gradients").div_(divisor)
        if nonfinite:
            self.lora.grad.fill_(math.nan)
        return total

    def _divisor(self) -> tuple[float, bool]:
        """(The normaliser over all ranks, 0 when no rank accumulated anything; whether a rank's fixed-point
        gradient lacks a part that is not finite).
        """
        mine = self.normalizer, self.counted, self.failure, self.nonfinite
        ranks = self.meet(mine, f"normaliser of {self.name}")
        for rank, (_, _, failure, _) in enumerate(ranks):
            if failure:
                raise EngineError(
                    f"rank {rank}: forward_backward raised ({failure}), so the gradient is incomplete; "
                    "zero_grad first"
                )
        names = {normalizer for normalizer, *_ in ranks if normalizer is not None}
        if len(names) > 1:
            raise EngineError(f"loss.normalizer: differs between ranks: {[name for name, *_ in ranks]}")
        nonfinite = any(broken for *_, broken in ranks)
        for name in names:
            if isinstance(name, float):
                return name, nonfinite
        return sum(counted for _, counted, _, _ in ranks), nonfinite

    def step(self, config: AdamW) -> dict[str, float]:
        """`reduce`, and the optimizer's step with the sum."""
        normalizer = self.reduce()
        with ranged("train: optimizer"):
            return {**self.optimizer.step(config), "normalizer": normalizer}

    def reset(self) -> None:
        """Start anew: moments, step count and accumulated gradient."""
        self.optimizer.reset()
        self.zero_grad()

    def load_state(self, state: Mapping[str, Any], where: str = "state") -> None:
        """Take over an `Optimizer.state`. Raises EngineError as `check_state` does, with nothing changed."""
        self.optimizer.load_state(state, where)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget accumulated gradients and their normaliser."""
        self.lora.attach_grad()
        self.lora.grad.zero_()
        self.normalizer, self.counted, self.failure, self.nonfinite = None, 0.0, "", False
        self.cleared += 1
        if self.fixed is not None:
            self.fixed.zero_()
            self.fixed_top = 0.0


def _compare(logp: Tensor, batch: TokenBatch, tally: Tally, version: int | None) -> None:
    """Tally how far the sampler's recorded log-probabilities are from the trainer's."""
    tally.sums["tokens"] += len(logp)
    tally.sums["samples"] += sum(any(s.trained_mask()) for s in batch.samples)
    tally.sums["turns"] += sum(len(s.turns()) for s in batch.samples)
    tally.sums["entropy"] += float(batch.entropy.sum())
    recorded = batch.old if batch.recorded is None else batch.recorded
    use = ~recorded.isnan() & (batch.version == version if version is not None else False)
    gap = (logp - recorded)[use]
    tally.sums["gap_tokens"] += len(gap)
    tally.sums["gap"] += float(gap.abs().sum())
    tally.top("ratio_max_error", float(gap.expm1().abs().max()) if len(gap) else 0.0)
