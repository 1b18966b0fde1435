"""Tree and paged attention on a CPU, as batched products through an index table.

A *family* is n members that share one context: the samples of a prompt, the children of a tree node, or one
chunk of a prompt (n = 1). The queries of member m see the whole context and a prefix of m's own keys:

    out_i = softmax(scale * q_i · [K_context ; K_own(m)[: visible_i]]) [V_context ; V_own(m)[: visible_i]]

The context is read once for all members (cascade attention: FlashInfer, arXiv 2501.01005), without a dense
mask. Plain causal attention is a family of one with an empty context. `AttentionBlock` stacks F families of
equal padded shape, so that one batched product serves them all.

Keys and values: [Hkv, S, D]; an index names ``unit`` consecutive rows of S (a page of tokens; 1 for tree
rows). Grouped-query heads are folded into rows. With ``exact`` the same sums run over fixed blocks of
`EXACT_BLOCK` keys from the root, which makes the result batch-invariant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.attention_block import AttentionBlock, heads_first, scatter
from proactor.kernels.past import Past, joined
from proactor.kernels.precision import wide_dtype
from proactor.kernels.tree_exact import exact_forward
from proactor.kernels.tree_tiles import tiled_backward, tiled_forward


def _run(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[AttentionBlock], scale: float, unit: int, exact: bool
) -> tuple[Tensor, Tensor]:
    qh = heads_first(q, k.shape[0])
    out = torch.empty_like(qh)
    lse = qh.new_empty(qh.shape[:3], dtype=wide_dtype(qh.dtype))
    forward = exact_forward if exact else tiled_forward
    for block in blocks:
        o, log_sum = forward(qh, k, v, block, scale, unit)
        scatter(out, block, o)
        scatter(lse, block, log_sum)
    return out, lse


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: list[AttentionBlock],
    scale: float,
    unit: int = 1,
    exact: bool = False,
) -> Tensor:
    """Attention of q [T, Hq, D] to k, v [Hkv, S, D] -> [T, Hq * D], without gradient.

    Every query row must be in exactly one block. ``exact``: fixed summation order, batch-invariant.
    """
    out, _ = _run(q, k, v, blocks, scale, unit, exact)
    return out.transpose(0, 1).reshape(q.shape[0], -1)


# --- with gradient ---


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: list[AttentionBlock],
        scale: float,
        exact: bool,
        past: Past | None,
    ) -> Tensor:
        out, lse = _run(q, *_stores(past, k, v), blocks, scale, 1, exact)
        flat = out.transpose(0, 1).reshape(q.shape[0], -1)
        # what others keep too: q and k are halves of one tensor, the output is the next linear's input
        ctx.save_for_backward(q, k, v, flat, lse)
        ctx.blocks, ctx.scale, ctx.past = blocks, scale, past
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, flat, lse = ctx.saved_tensors
        qh, out, dout = (heads_first(x.reshape(q.shape), k.shape[1]) for x in (q, flat, grads[0]))
        keys, values = _stores(ctx.past, k, v)
        wide = wide_dtype(qh.dtype)
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (qh, keys, values))
        for block in ctx.blocks:
            tiled_backward(block, ctx.scale, qh, keys, values, out, lse, dout, dq, dk, dv)
        dk, dv = dk.transpose(0, 1), dv.transpose(0, 1)
        if ctx.past is not None:
            first = ctx.past.rows
            ctx.past.add(dk[:first], dv[:first])
            dk, dv = dk[first:], dv[first:]
        dq = dq.transpose(0, 1).reshape(q.shape)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _stores(past: Past | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [Hkv, C + T, D] of the earlier and the own rows."""
    keys, values = joined(past, k, v)
    return keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()


def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: list[AttentionBlock],
    scale: float,
    exact: bool = False,
    past: Past | None = None,
) -> Tensor:
    """Differentiable attention over tree rows: q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D].

    Blocks index rows (unit 1), and every row is a query of exactly one. Keys are numbered from 0: those of
    ``past``, then the own rows. Cost is proportional to visible keys.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _TreeAttention.apply(q, k, v, blocks, scale, exact, past)  # type: ignore[no-any-return, no-untyped-call]
    return attend(q, *_stores(past, k, v), blocks, scale, exact=exact)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Dense attention for checks: q [T, Hq, D], k, v [S, Hkv, D], visible bool [T, S] -> [T, Hq * D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).flatten(1)
