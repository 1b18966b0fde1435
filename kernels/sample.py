"""Drawing tokens: temperature, top-k, top-p and min-p filters, and noise that belongs to a position rather than to a batch.

One uniform a row comes from Philox4x32-10 (Salmon et al., SC 2011) keyed by (seed; step, group, sample, position), so that a token does not depend on
what it is batched with; the token is the inverse of the cumulative distribution at that uniform, found in two levels of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.kernels.logprob import exponentials_

CDF_BLOCK = 64
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Philox4x32-10: counters [N, 4] of 32-bit words (as uint64) and a 64-bit seed -> [N, 4] of 32-bit words."""
    x0, x1, x2, x3 = (counter[:, i] & _LOW for i in range(4))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _M0 * x0, _M1 * x2
        x0, x1, x2, x3 = (p1 >> _HALF) ^ x1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ x3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=1)


def uniforms(
    seed: int, step: int, group: NDArray[np.int64], sample: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Uniforms in (0, 1) with 53 random bits, one a row, from its own key."""
    counter = np.stack([position, sample, group, np.full(len(group), step)], axis=1).astype(np.uint64)
    words = philox(counter, seed)
    bits = (words[:, 0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[:, 1] >> np.uint64(6))
    out: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return out


@dataclass(slots=True)
class Filters:
    """Per-row settings [B]: top_k int64 (0 off), top_p and min_p float32; ``allowed`` bool [B, V] or None."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    allowed: Tensor | None = None


def filter_weights(probs: Tensor, filters: Filters) -> Tensor:
    """Zero what the filters exclude, in the order allowed, top-k, top-p, min-p (as transformers does); unnormalised probabilities
    [B, V] -> [B, V].

    Ties at a top-k threshold are all kept. At least the most probable allowed token always stays.
    """
    probs = probs.clone() if filters.allowed is None else probs * filters.allowed
    if bool((filters.top_k > 0).any()):
        k = torch.where(filters.top_k > 0, filters.top_k, probs.shape[1]).clamp(max=probs.shape[1])
        best = probs.topk(int(k[filters.top_k > 0].max()), dim=-1).values
        threshold = best.gather(1, (k - 1).clamp(max=best.shape[1] - 1).unsqueeze(1))
        probs.masked_fill_((probs < threshold) & (filters.top_k > 0).unsqueeze(1), 0.0)
    if bool((filters.top_p < 1).any()):
        ordered, index = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        drop = before >= filters.top_p.unsqueeze(1) * ordered.sum(-1, keepdim=True)
        drop[:, 0] = False
        drop &= (filters.top_p < 1).unsqueeze(1)
        probs.masked_fill_(torch.zeros_like(drop).scatter_(1, index, drop), 0.0)
    if bool((filters.min_p > 0).any()):
        probs.masked_fill_(probs < filters.min_p.unsqueeze(1) * probs.amax(-1, keepdim=True), 0.0)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Token ids [B] at ``uniform`` [B] (float64) of the cumulative distribution of non-negative weights probs [B, V]; never one of weight 0."""
    b, v = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -v % CDF_BLOCK)) if v % CDF_BLOCK else probs
    blocks = padded.view(b, -1, CDF_BLOCK)
    sums = blocks.sum(-1).double()
    edges = sums.cumsum(-1)
    target = uniform * edges[:, -1]
    block = _index(edges, sums, target)
    rows = torch.arange(b)
    inner = blocks[rows, block].double()
    rest = (target - (edges[rows, block] - sums[rows, block])).clamp_(min=0)  # rounding must not reach a leading zero
    return block * CDF_BLOCK + _index(inner.cumsum(-1), inner, rest)


def _index(edges: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative weight passes ``target``, held to the last one of positive weight."""
    places = torch.arange(1, weights.shape[1] + 1)
    last = ((weights > 0) * places).amax(-1) - 1
    return torch.minimum((edges <= target.unsqueeze(1)).sum(-1), last)


def sample_tokens(
    logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Filters | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row.

    logits [B, V] float32 (overwritten); temperature float32 [B], 0 for greedy; uniform float64 [B].
    Returns ids int64 [B], log-probability of the distribution sampled from [B] and of the full softmax at that temperature [B] (greedy: at 1), float32.
    """
    greedy = temperature <= 0
    if not bool((temperature == 1).all()):
        logits.mul_(torch.where(greedy, 1.0, temperature).reciprocal().unsqueeze(1))
    weights, total = exponentials_(logits)
    kept = weights if filters is None else filter_weights(weights, filters)
    ids = draw(kept, uniform)
    if bool(greedy.any()):
        ids = torch.where(greedy, kept.argmax(-1), ids)
    policy = logits.gather(1, ids.unsqueeze(1)).squeeze(1) - total.log()
    if filters is None:
        return ids, policy, policy
    return ids, policy - (kept.sum(-1) / total).log(), policy
