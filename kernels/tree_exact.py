"""The forward of `tree_attention` in a fixed order: a row's sum depends on its path from the root alone."""

from __future__ import annotations

import torch
from torch import Tensor

from proactor.kernels.attention_block import AttentionBlock, queries
from proactor.kernels.precision import widen

EXACT_BLOCK = 32
EXACT_TILE_BYTES = 64 << 20


def exact_forward(
    qh: Tensor, k: Tensor, v: Tensor, block: AttentionBlock, scale: float, unit: int
) -> tuple[Tensor, Tensor]:
    """As `tree_tiles.tiled_forward`, with one product per (row, key block): the order of sums depends on
    depth alone.
    """
    qf = widen(queries(qh, block))
    hkv, f, n, lq, g, d = qf.shape
    path, hidden = _paths(block, unit)
    length = path.shape[-1]
    out, lse = qf.new_empty(hkv, f * n, lq, g, d), qf.new_empty(hkv, f * n, lq, g)
    qm = qf.reshape(hkv, f * n, lq, g, d)
    tile = max(1, EXACT_TILE_BYTES // max(1, hkv * f * n * length * d * 4))
    kp, vp = (widen(x.index_select(1, path.reshape(-1))).view(hkv, f * n, 1, length, d) for x in (k, v))
    vp.masked_fill_(hidden.all(1)[None, :, None, :, None], 0)
    for start in range(0, lq, tile):
        rows = slice(start, min(lq, start + tile))
        out[:, :, rows], lse[:, :, rows] = _exact_tile(qm[:, :, rows], kp, vp, hidden[:, rows], scale)
    return out.to(v.dtype).reshape(hkv, -1, g, d), lse.reshape(hkv, -1, g)


def _paths(block: AttentionBlock, unit: int) -> tuple[Tensor, Tensor]:
    """(key slots from the root [F*n, L] of each member, bool [F*n, lq, L]: hidden from the query).

    L is a multiple of `EXACT_BLOCK`.
    """
    f, n, lq = block.rows.shape
    offsets = torch.arange(unit, device=block.own.device)

    def slots(index: Tensor) -> Tensor:
        return (index.unsqueeze(-1) * unit + offsets).flatten(-2)

    context, own = slots(block.context), slots(block.own)
    lc, lo = context.shape[-1], own.shape[-1]
    context_hidden, own_hidden = block.context_hidden, block.own_hidden
    if context_hidden is None:
        context_hidden = own.new_zeros((f, lc), dtype=torch.bool)
    if own_hidden is None:
        own_hidden = own.new_zeros((f, n, lq, lo), dtype=torch.bool)
    paths, masks = [], []
    for i in range(f):
        real = int((~context_hidden[i]).sum())  # the context's padding, at its end, must not shift own keys
        paths.append(torch.cat([context[i, :real].expand(n, real), own[i]], -1))
        masks.append(torch.cat([context_hidden[i, :real].expand(n, lq, real), own_hidden[i]], -1))
    length = -(-max(p.shape[-1] for p in paths) // EXACT_BLOCK) * EXACT_BLOCK
    path = torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[-1])) for p in paths])
    hidden = torch.cat([torch.nn.functional.pad(m, (0, length - m.shape[-1]), value=True) for m in masks])
    return path, hidden


def _exact_tile(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Online softmax over key blocks: q [Hkv, B, r, G, D], k, v [Hkv, B, 1, L, D], hidden [B, r, L]."""
    hkv, b, r, g, d = q.shape
    if hkv * b * r == 1:  # libraries use another kernel for a batch of one product
        pair = [t.expand(1, 2, *t.shape[2:]) for t in (q, k, v)]
        out, lse = _exact_tile(pair[0], pair[1], pair[2], hidden.expand(2, -1, -1), scale)
        return out[:, :1], lse[:, :1]
    flat = q.reshape(-1, g, d)
    count = flat.shape[0]
    top = flat.new_full((count, g, 1), float("-inf"))
    total, acc = torch.zeros_like(top), torch.zeros_like(flat)
    for start in range(0, k.shape[3], EXACT_BLOCK):
        keys = slice(start, start + EXACT_BLOCK)
        kb = k[:, :, :, keys].expand(hkv, b, r, EXACT_BLOCK, d).reshape(count, EXACT_BLOCK, d)
        vb = v[:, :, :, keys].expand(hkv, b, r, EXACT_BLOCK, d).reshape(count, EXACT_BLOCK, d)
        s = torch.bmm(flat, kb.transpose(1, 2)) * scale
        masked = hidden[None, :, :, None, keys].expand(hkv, b, r, 1, EXACT_BLOCK)
        s = s.masked_fill(masked.reshape(count, 1, EXACT_BLOCK), float("-inf"))
        new_top = torch.maximum(top, s.amax(-1, keepdim=True))
        p = (s - new_top).exp()
        keep = (top - new_top).exp()
        total = total * keep + p.sum(-1, keepdim=True)
        acc = acc * keep + torch.bmm(p, vb)
        top = new_top
    return (acc / total).view(hkv, b, r, g, d), (top + total.log()).view(hkv, b, r, g)
