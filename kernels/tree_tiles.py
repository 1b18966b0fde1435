"""An attention block of `tree_attention`, forward and backward, in tiles whose scores stay in a cache.

A tile is some heads of all families, or families of one head, or members of one family, or rows of one
member: at most `TILE` scores, unless a few rows alone have more. Its rows see the context by one batched
product and their own keys by another, under one softmax. Where the rows of a causal run are cut, a tile is
not multiplied by the own keys after its last row.

Half types are widened before the products, and no score, weight or sum is rounded to them: a score of 10
rounded to bfloat16 changes its weight by 3%.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.kernels.attention_block import AttentionBlock, gather, queries, real_rows
from proactor.kernels.precision import additive, exp_, widen

TILE = 1 << 18
"""Scores of a tile: in float32 they are 1 MB, about what a server core's second cache holds.
On a GPU, where this is the form that checks compare with, it is as good as any."""
LEAST_ROWS = 16
"""Rows of a tile whose member is cut."""

Tile = tuple[slice, slice, slice, slice]
"""Heads, families, members and rows."""


def tile_sizes(sizes: Sequence[int], row: int) -> list[int]:
    """How many heads, families, members and rows, of ``sizes``, a tile has; ``row``: scores of a row."""
    most = []
    for i, size in enumerate(sizes):
        inner = math.prod(sizes[i + 1 :]) * row
        most.append(max(1, min(size, TILE // inner)))
    if most[-1] < sizes[-1]:
        most[-1] = min(sizes[-1], max(LEAST_ROWS, most[-1] // LEAST_ROWS * LEAST_ROWS))
    return most


def tile_scores(block: AttentionBlock, kv_heads: int, group: int) -> int:
    """Scores of the block's largest tile, where units are rows."""
    row = group * (block.context.shape[-1] + block.own.shape[-1])
    return math.prod(tile_sizes((kv_heads, *block.rows.shape), row)) * row


def _tiles(sizes: Sequence[int], row: int) -> Iterator[Tile]:
    runs = (
        [slice(first, min(size, first + step)) for first in range(0, size, step)]
        for size, step in zip(sizes, tile_sizes(sizes, row), strict=True)
    )
    return itertools.product(*runs)


@dataclass(frozen=True, slots=True)
class _Part:
    """The context of a block or its own keys: units ``index``; ``keys``, ``values`` [Hkv, F, 1 or n, L, D];
    ``mask`` [F, 1 or n, 1 or lq, 1, L] is added to scores. ``causal``: row i sees the first i + 1 keys.
    """

    index: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    own: bool
    causal: bool

    def read(self, store: Tensor, tile: Tile) -> Tensor:
        """The keys of ``store``, shaped as ``keys``, that a tile's rows see: a view [batch, L, D]."""
        heads, families, members, rows = tile
        found = store[heads, families, members if self.own else slice(None)]
        if self.causal:
            found = found[..., : rows.stop, :]
        return found.view(-1, *found.shape[-2:])

    def scores(self, q: Tensor, tile: Tile, scale: float) -> Tensor:
        """Of q [h, f, m, r, G, D] -> [h, f, m, r, G, L]."""
        scores = _product(q, self.read(self.keys, tile).transpose(1, 2)).mul_(scale)
        if self.mask is not None:
            _, families, members, rows = tile
            mask = self.mask[families]
            if self.own:
                mask = mask[:, members, rows]
            scores += mask[..., : scores.shape[-1]]
        return scores


def _product(rows: Tensor, matrices: Tensor) -> Tensor:
    """rows [h, f, m, r, G, K] times matrices [batch, K, L], each of as many rows -> [h, f, m, r, G, L]."""
    return torch.bmm(_flat(rows, matrices), matrices).view(*rows.shape[:-1], -1)


def _flat(rows: Tensor, matrices: Tensor) -> Tensor:
    """rows [h, f, m, r, G, K] -> [batch, h f m r G / batch, K]."""
    return rows.reshape(len(matrices), -1, rows.shape[-1])


def _parts(k: Tensor, v: Tensor, block: AttentionBlock, unit: int) -> list[_Part]:
    """Own keys, then the context where there is one."""
    f, n, _ = block.rows.shape
    parts = []
    for index, hidden, own in (
        (block.own, block.own_hidden, True),
        (block.context, block.context_hidden, False),
    ):
        if not index.shape[-1]:
            continue
        keys, values = (
            widen(gather(x, index, unit)).view(x.shape[0], f, n if own else 1, -1, x.shape[-1])
            for x in (k, v)
        )
        mask = None
        if hidden is not None:
            mask = additive(hidden, keys.dtype)
            mask = mask[:, :, :, None] if own else mask[:, None, None, None]
        parts.append(_Part(index, keys, values, mask, own, own and block.causal))
    return parts


def _block_tiles(q: Tensor, parts: Sequence[_Part]) -> Iterator[Tile]:
    """The tiles of q [Hkv, F, n, lq, G, D]."""
    return _tiles(q.shape[:4], q.shape[4] * sum(part.keys.shape[3] for part in parts))


def tiled_forward(
    qh: Tensor, k: Tensor, v: Tensor, block: AttentionBlock, scale: float, unit: int
) -> tuple[Tensor, Tensor]:
    """Output [Hkv, F*n*lq, G, D] and log-sum-exp [Hkv, F*n*lq, G] of one block."""
    qf, parts = widen(queries(qh, block)), _parts(k, v, block, unit)
    hkv, *_, g, d = qf.shape
    out, lse = torch.empty_like(qf), qf.new_empty(qf.shape[:-1])
    for tile in _block_tiles(qf, parts):
        scores = [part.scores(qf[tile], tile, scale) for part in parts]
        top = scores[0].amax(-1, keepdim=True)
        for far in scores[1:]:
            top = torch.maximum(top, far.amax(-1, keepdim=True))
        weights = [exp_(x, top) for x in scores]
        total, sums = torch.zeros_like(top), torch.zeros_like(qf[tile])
        for part, x in zip(parts, weights, strict=True):
            total += x.sum(-1, keepdim=True)
            sums += _product(x, part.read(part.values, tile))
        out[tile] = sums.div_(total)
        lse[tile] = total.log_().add_(top).squeeze(-1)
    return out.to(v.dtype).view(hkv, -1, g, d), lse.view(hkv, -1, g)


def tiled_backward(
    block: AttentionBlock,
    scale: float,
    qh: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Add one block's gradients to dq [Hkv, T, G, D], dk and dv [Hkv, S, D], in `precision.wide_dtype`.

    Probabilities are recomputed from the saved log-sum-exp: Dao et al., arXiv 2205.14135.
    """
    qf, parts = widen(queries(qh, block)), _parts(k, v, block, 1)
    hkv, *_, g, d = qf.shape
    rows = block.rows.reshape(-1)
    do = widen(real_rows(dout, block)).view_as(qf)
    delta = (do * queries(out, block)).sum(-1, keepdim=True)
    norm = lse.index_select(1, rows).view_as(delta)
    dqf = torch.zeros_like(qf)
    gradients = [(torch.zeros_like(part.keys), torch.zeros_like(part.values)) for part in parts]
    for tile in _block_tiles(qf, parts):
        q, dot = qf[tile], do[tile]
        for part, (dkeys, dvalues) in zip(parts, gradients, strict=True):
            weights = exp_(part.scores(q, tile, scale), norm[tile])
            slopes = _product(dot, part.read(part.values, tile).transpose(1, 2))
            slopes.sub_(delta[tile]).mul_(weights)
            dqf[tile] += _product(slopes, part.read(part.keys, tile))
            for target, left, right in ((dkeys, slopes, q), (dvalues, weights, dot)):
                total = part.read(target, tile)
                total.baddbmm_(_flat(left, total).transpose(1, 2), _flat(right, total))
    dq.index_add_(1, rows, dqf.mul_(scale).view(hkv, -1, g, d))
    for part, (dkeys, dvalues) in zip(parts, gradients, strict=True):
        index = part.index.reshape(-1)
        dk.index_add_(1, index, dkeys.mul_(scale).view(hkv, -1, d))
        dv.index_add_(1, index, dvalues.view(hkv, -1, d))
