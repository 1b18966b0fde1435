"""The gradient of a loss over one token tree, in one pass or in chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proactor.engine.faults import fault_point
from proactor.engine.forward import head_logprobs, head_loss, head_rows, tree_logprobs
from proactor.engine.layout import Layout, TokenBatch
from proactor.engine.loss import (
    Loss,
    PartialLoss,
    SlopeLoss,
    Statistics,
    by_token,
    evaluate,
    refuse_constant,
    slopes,
)
from proactor.engine.model import Decoder
from proactor.engine.ranges import ranged
from proactor.engine.recompute import Walk
from proactor.engine.tree import Tree
from proactor.kernels.logprob_loss import autograd_loss
from proactor.kernels.op import use_triton


@dataclass(frozen=True, slots=True)
class Backward:
    """The loss's sum, log-probabilities [N] of the trained tokens, their batch, and the loss's statistics."""

    value: float
    logprobs: Tensor
    batch: TokenBatch
    statistics: Statistics


OldPolicy = Mapping[int, Tensor]
"""By the id of a sample, log-probabilities of its trained tokens under an earlier policy. A sample that is
not there, and a token that has NaN, is compared with the present one.
"""


def backward(decoder: Decoder, tree: Tree, loss: Loss, most: int, old: OldPolicy | None = None) -> Backward:
    """Add the gradient of ``loss`` over ``tree`` to the adapter's; above ``most`` rows in chunks of so many.

    ``old``: what the loss sees as old log-probabilities, if not the recorded ones. Raises EngineError as
    `head_rows` and `evaluate`, and for a sum without gradient.
    """
    if tree.rows <= most:
        return _in_one_pass(decoder, tree, loss, old)
    return _in_chunks(decoder, tree, loss, most, old)


def _in_one_pass(decoder: Decoder, tree: Tree, loss: Loss, old: OldPolicy | None) -> Backward:
    reference = None
    if getattr(loss, "needs_reference", False):
        with torch.no_grad(), ranged("train: reference"):
            reference = tree_logprobs(decoder.wearing(None), tree)[0]
    with ranged("train: model"):
        rows, flat = head_rows(decoder, tree)
    flat.batch.reference = reference
    _fill_in(loss, flat.batch, old)
    with ranged("train: head and loss"):
        value, logp, statistics = _loss(decoder, rows, flat, loss)
    fault_point("backward")
    with ranged("train: backward"):
        value.backward()
    flat.batch.entropy = flat.batch.entropy.detach()
    return Backward(float(value.detach()), logp.detach(), flat.batch, statistics)


def _in_chunks(decoder: Decoder, tree: Tree, loss: Loss, most: int, old: OldPolicy | None) -> Backward:
    """The tree recomputed by turns (`engine/recompute.py`).

    A loss that may couple tokens takes all log-probabilities first, which runs samples twice as well; its
    slopes are then the loss.
    """
    walk = Walk(decoder, tree, most)
    batch = walk.batch
    if getattr(loss, "needs_reference", False):
        with ranged("train: reference"):
            batch.reference = walk.logprobs(adapter=False)
    _fill_in(loss, batch, old)
    if by_token(loss):
        with ranged("train: pass one"):
            walk.remember()
        return _chunks(decoder, walk, loss)
    with ranged("train: pass one"):
        value, slope, spread, statistics = slopes(loss, walk.logprobs(), batch)
    walk.batch = replace(batch, weight=slope, advantage=batch.advantage if spread is None else spread)
    done = _chunks(decoder, walk, SlopeLoss(entropy=spread is not None))
    return replace(done, value=float(value), batch=batch, statistics=statistics)


def _chunks(decoder: Decoder, walk: Walk, loss: Loss) -> Backward:
    """Pass two with a loss that is `by_token`."""
    batch, sums = walk.batch, dict[str, float | Tensor]()
    value, logp = batch.old.new_zeros((), dtype=walk.wide), torch.empty_like(batch.old, dtype=walk.wide)
    entropy = torch.empty_like(logp)
    for rows, part, tokens in walk.backwards():
        fault_point("backward")
        if not len(tokens):
            rows.sum().backward()  # nothing of its own: only what later chunks left for its rows
            continue
        with ranged("train: head and loss"):
            total, mine, statistics = _loss(decoder, rows, part, loss)
        with ranged("train: backward"):
            total.backward()
        logp[tokens], entropy[tokens] = mine.detach(), part.batch.entropy.detach()
        value += total.detach()
        for name, number in statistics.items():
            sums[name] = sums.get(name, 0.0) + number
    batch.entropy = entropy
    return Backward(float(value), logp, batch, sums)


def _loss(decoder: Decoder, rows: Tensor, flat: Layout, loss: Loss) -> tuple[Tensor, Tensor, Statistics]:
    """(sum, log-probabilities, statistics) of the trained tokens of a tree or of a part of one.

    On the kernels a loss `by_token` is computed inside the head: each chunk's logits are computed once and
    overwritten by their gradient. A loss that may couple tokens needs all log-probabilities first.
    """
    if use_triton(rows) and by_token(loss):
        partial = PartialLoss(loss, flat)
        value, logp = head_loss(decoder, rows, flat, autograd_loss(partial))
        return value, logp, partial.statistics
    logp = head_logprobs(decoder, rows, flat)
    value, statistics = evaluate(loss, logp, flat.batch)
    refuse_constant(value)
    return value, logp, statistics


def _fill_in(loss: Loss, batch: TokenBatch, old: OldPolicy | None) -> None:
    """Put the old policy's log-probabilities into the batch, and where ``loss`` counts samples or turns let
    each token weigh as its share of them.
    """
    if old is not None:
        batch.recorded, batch.old = batch.old, torch.full_like(batch.old, math.nan)
        if old:
            counts = torch.bincount(batch.sample, minlength=len(batch.samples)).tolist()
            unknown = zip(batch.samples, batch.old.split(counts), strict=True)
            columns = [old.get(id(sample), column) for sample, column in unknown]
            batch.old = torch.cat(columns) if columns else batch.old
    unit = getattr(loss, "normalizer", "tokens")
    if unit in ("samples", "turns"):
        number = batch.sample if unit == "samples" else batch.turns()
        batch.weight = batch.weight / torch.bincount(number)[number]
