"""A loss over log-probabilities, with its gradient: two head products per chunk of rows, no logits kept.

The backward of `log_probabilities` needs the logits again, because the loss's gradient is known only after
the last chunk. When the loss is a sum with one term per pair, each chunk's gradient is known at once:

    logits = H Wᵀ  ->  log p, entropy  ->  Σ terms and its gradients in both from the caller
                   ->  logits become dz in place  ->  dH = dz W

The backward then only multiplies the stored dH [R, H] by the gradient of the sum. Gradients formed in the
forward of a fused head: Liger Kernel, arXiv 2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.head_rows import launch_slopes_, launch_values
from proactor.kernels.linear import Linear, library_linear
from proactor.kernels.logprob import (
    SHAPES,
    TOLERANCE,
    TRITON_DTYPES,
    check_pairs,
    chunk_pairs,
    head_case,
    logprob_reference,
    row_chunks,
    scaled_logits,
    slopes_,
    timed_heads,
    triton_rows,
    values_,
)
from proactor.kernels.op import Arguments, Case, ModelShape, Op, use_triton
from proactor.kernels.precision import wide_dtype

PairLoss = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor, Tensor | None]]
"""(log p [p] float32 of a chunk's pairs, their entropies [p], their slice) -> (sum of their terms, its
gradient in log p [p], and in the entropies [p] or None for 0).

Must not synchronise with the GPU; otherwise the whole head does.
"""


def autograd_loss(terms: Callable[[Tensor, Tensor, slice], Tensor]) -> PairLoss:
    """A `PairLoss` by autograd, from a function of (log p, entropies, pairs) that returns the terms or their
    sum.
    """

    def loss(logp: Tensor, entropy: Tensor, pairs: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.enable_grad():
            leaves = logp.detach().requires_grad_(), entropy.detach().requires_grad_()
            total = terms(*leaves, pairs).sum()
            slope, spread = torch.autograd.grad(total, leaves, allow_unused=True)
        return total.detach(), torch.zeros_like(logp) if slope is None else slope, spread

    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        row: Tensor,
        target: Tensor,
        temperature: Tensor,
        loss: PairLoss,
        linear: Linear,
        needed: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = _triton if use_triton(hidden) and hidden.dtype in TRITON_DTYPES else _torch
        sums, logp, entropy, dh = run(hidden, weight, row, target, temperature, loss, linear, needed)
        ctx.save_for_backward(*([dh] if needed else []))
        ctx.mark_non_differentiable(logp, entropy)
        return torch.stack(sums).sum() if sums else logp.new_zeros(()), logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dh,) = ctx.saved_tensors
        return (dh * grads[0].to(dh.dtype), *[None] * 7)


def _triton(
    hidden: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    temperature: Tensor,
    loss: PairLoss,
    linear: Linear,
    needed: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    logp = torch.empty(len(row), dtype=torch.float32, device=hidden.device)
    entropy, slope, spread = torch.empty_like(logp), torch.empty_like(logp), torch.empty_like(logp)
    sums: list[Tensor] = []
    rows = triton_rows(row, target, temperature)
    lse, dh = torch.empty_like(rows.scale), torch.empty_like(hidden if needed else hidden[:0])
    chunks = row_chunks(len(hidden), weight)
    bounds = chunk_pairs(row, len(hidden), chunks[0][1]) if chunks else []
    for start, stop, first, last in bounds:
        logits = linear(hidden[start:stop], weight, None).contiguous()
        launch_values(logits, start, rows, logp, entropy, lse)
        total, slope[first:last], mine = loss(logp[first:last], entropy[first:last], slice(first, last))
        sums.append(total)
        if mine is not None:
            spread[first:last] = mine
        if needed:
            launch_slopes_(logits, start, rows, lse, slope, None if mine is None else (spread, entropy))
            torch.mm(logits.to(weight.dtype), weight, out=dh[start:stop])
        del logits  # otherwise two chunks would be live at once
    return sums, logp, entropy, dh


def _torch(
    hidden: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    temperature: Tensor,
    loss: PairLoss,
    linear: Linear,
    needed: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    logp = hidden.new_empty(len(row), dtype=wide_dtype(hidden.dtype))
    entropy = torch.empty_like(logp)
    sums: list[Tensor] = []
    scale, dh = temperature.reciprocal(), torch.empty_like(hidden if needed else hidden[:0])
    for start, stop, first, last in chunk_pairs(row, len(hidden)):
        r, part = row[first:last] - start, scale[start:stop]
        shifted = scaled_logits(hidden[start:stop], weight, part, linear)
        weights, total, logp[first:last], entropy[first:last] = values_(shifted, r, target[first:last])
        terms, slope, spread = loss(logp[first:last], entropy[first:last], slice(first, last))
        sums.append(terms)
        if needed:
            spread = None if spread is None else spread.to(logp.dtype)
            dz = slopes_(weights, total, part, r, target[first:last], slope.to(logp.dtype), spread)
            dh[start:stop] = dz.to(hidden.dtype) @ weight
        del shifted, weights
    return sums, logp, entropy, dh


def logprob_loss(
    hidden: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    temperature: Tensor,
    loss: PairLoss,
    linear: Linear = library_linear,
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ terms, log p [P], entropy [P]) of a loss with one term per pair over `log_probabilities`.

    Differentiable in ``hidden``, through the sum alone. Arguments and errors are those of
    `log_probabilities`; so are the bits of log p, when the chunks agree. ``loss`` is called once per chunk,
    in order, without gradient. A term may depend only on the log p and the entropy of its own pair; for a
    ratio over a whole sequence, use `log_probabilities`.
    """
    check_pairs(hidden, weight, row, target, temperature)
    needed = hidden.requires_grad and torch.is_grad_enabled()
    return _Loss.apply(hidden.contiguous(), weight, row, target, temperature, loss, linear, needed)  # type: ignore[no-any-return, no-untyped-call]


# --- record ---


def _clipped(logp: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
    """A clipped policy loss around made-up old log-probabilities and advantages."""
    index = torch.arange(pairs.start, pairs.stop, device=logp.device)
    advantage = (index % 5 - 2).to(logp.dtype)
    ratio = (logp + 4.0 + (index % 3 - 1) * 0.1).clamp(max=2.0).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def _reference(
    hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor, loss: PairLoss
) -> tuple[Tensor, ...]:
    logp, entropy = logprob_reference(hidden, weight, row, target, temperature[row])
    total, slope, spread = loss(logp.detach(), entropy.detach(), slice(0, len(row)))
    total = total + (slope * (logp - logp.detach())).sum()
    if spread is not None:
        total = total + (spread * (entropy - entropy.detach())).sum()
    return total, logp.detach(), entropy.detach()


def _case(base: Case, terms: Callable[[Tensor, Tensor, slice], Tensor], name: str = "") -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        return base.make(generator, device, dtype) | {"loss": autograd_loss(terms)}

    return Case(base.name + name, make)


def _with_entropy(logp: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
    """`_quadratic` and a term of the entropy, smooth too."""
    return _quadratic(logp, entropy, pairs) + 0.5 * entropy + 0.1 * entropy * entropy


def _quadratic(logp: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
    """Terms of one sign and a smooth slope: a clip would make half types choose the other side, and a sum
    near zero show rounding alone.
    """
    index = torch.arange(pairs.start, pairs.stop, device=logp.device)
    return (index % 5 + 0.5).to(logp.dtype) * (0.1 * logp * logp - logp)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(case, _clipped) for case in timed_heads(shape)]


LOGPROB_LOSS = Op(
    "logprob_loss",
    logprob_loss,
    _reference,
    [
        *(_case(head_case(*s), _quadratic) for s in SHAPES),
        *(_case(head_case(*s), _with_entropy, "-entropy") for s in SHAPES[-2:]),
    ],
    TOLERANCE,
    bytes=lambda hidden, weight, row, target, temperature, loss: (
        2 * hidden.nbytes + 2 * weight.nbytes + 24 * len(row)
    ),
    flops=lambda hidden, weight, row, target, temperature, loss: 4 * hidden.shape[0] * weight.numel(),
    gradients=("hidden",),
    timed=_timed_cases,
)
