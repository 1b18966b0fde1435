"""Log-probabilities of chosen tokens from hidden rows, without keeping the logits of every row.

For pairs (row r, target y) with temperature τ:   log p = z_y/τ - logsumexp(z/τ),   z = W h_r,   entropy = logsumexp(z/τ) - Σ p z/τ

A branch point of a token tree predicts the first token of every child, so that several pairs may name one row: its logits are computed once.
The gradient of z at row r is Σ_pairs g (onehot(y) - p)/τ. Rows go through the head in chunks; a chunk's probabilities are kept for the backward while
they fit in `KEEP_BYTES` altogether (two head products a chunk), and recomputed otherwise (three).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.linear import Linear, library_linear
from proactor.kernels.precision import wide_dtype, widen

CHUNK_ROWS = 512
KEEP_BYTES = 1 << 30


def logprob_reference(
    hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain torch: hidden [R, H], weight [V, H], row and target int64 [P], temperature float32 [P] -> log p [P], entropy [P]."""
    logits = widen(hidden[row] @ weight.t()) / temperature.unsqueeze(1)
    logp = logits.log_softmax(-1)
    return logp.gather(1, target.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(-1)


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, scale: Tensor, linear: Linear, keep: bool
    ) -> tuple[Tensor, Tensor]:
        logp = hidden.new_empty(row.shape[0], dtype=wide_dtype(hidden.dtype))
        entropy = torch.empty_like(logp)
        total = logp.new_empty(hidden.shape[0])
        kept: list[Tensor] = []
        bounds = chunk_pairs(row, hidden.shape[0])
        for start, stop, first, last in bounds:
            shifted = _scaled_logits(hidden[start:stop], weight, scale[start:stop], linear)
            weights, total[start:stop] = exponentials_(shifted)
            log_total = total[start:stop].log()
            mean = torch.bmm(weights.unsqueeze(1), shifted.unsqueeze(2)).view(-1) / total[start:stop]
            r = row[first:last] - start
            logp[first:last] = shifted[r, target[first:last]] - log_total[r]
            entropy[first:last] = (log_total - mean)[r]
            if keep:
                kept.append(weights.to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, row, target, scale, total)
        ctx.kept, ctx.bounds, ctx.linear = kept, bounds, linear
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, row, target, scale, total = ctx.saved_tensors
        dlogp = grads[0]
        dh = torch.empty_like(hidden)
        for i, (start, stop, first, last) in enumerate(ctx.bounds):
            part = scale[start:stop]
            if ctx.kept:
                weights = widen(ctx.kept[i])
            else:
                weights, _ = exponentials_(_scaled_logits(hidden[start:stop], weight, part, ctx.linear))
            r = row[first:last] - start
            g = dlogp[first:last] * part[r]
            pull = dlogp.new_zeros(stop - start).index_add_(0, r, g)
            dz = weights.mul_((-pull / total[start:stop]).unsqueeze(1))
            dz.index_put_((r, target[first:last]), g, accumulate=True)
            dh[start:stop] = ctx.linear(dz.to(hidden.dtype), weight.t(), None)
        ctx.kept = []
        return dh, None, None, None, None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, scale: Tensor, linear: Linear) -> Tensor:
    logits = widen(linear(hidden, weight, None))
    return logits if bool((scale == 1).all()) else logits.mul_(scale.unsqueeze(1))


def exponentials_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - max) [R, V] and its sums [R]; ``logits`` [R, V] float32 are left shifted by their maximum.

    log p of token y is then ``logits[y] - log(sum)``. Sampler and trainer both compute it so, hence equal logits give equal bits.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    weights = logits.exp()
    return weights, weights.sum(-1)


def chunk_pairs(row: Tensor, rows: int) -> list[tuple[int, int, int, int]]:
    """(first row, end row, first pair, end pair) for each chunk of `CHUNK_ROWS` rows; ``row`` must ascend."""
    edges = [*range(0, rows, CHUNK_ROWS), rows]
    cuts = torch.searchsorted(row, torch.tensor(edges)).tolist()
    return [(a, b, c, d) for a, b, c, d in zip(edges[:-1], edges[1:], cuts[:-1], cuts[1:], strict=True)]


def log_probabilities(
    hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor, linear: Linear = library_linear
) -> tuple[Tensor, Tensor]:
    """Differentiable log-probabilities of pairs.

    hidden [R, H]; weight [V, H]; row, target int64 [P] with ``row`` ascending and every row named; temperature float32 [R], above 0.
    Returns log p [P] and entropy [P] (nats, no gradient), float32. Raises ValueError when the rows do not ascend.
    """
    if row.numel() > 1 and bool((row[1:] < row[:-1]).any()):
        raise ValueError("row: pairs must be sorted by row")
    keep = torch.is_grad_enabled() and hidden.shape[0] * weight.shape[0] * hidden.element_size() <= KEEP_BYTES
    return _LogProb.apply(hidden, weight, row, target, temperature.reciprocal(), linear, keep)  # type: ignore[no-any-return, no-untyped-call]
