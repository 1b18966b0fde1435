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

from proactor.kernels.attention_block import AttentionBlock, gather, heads_first, queries, scatter
from proactor.kernels.past import Past, joined
from proactor.kernels.precision import exp_, wide_dtype, widen
from proactor.kernels.tree_exact import exact_forward


def _scores(qf: Tensor, kc: Tensor, ko: Tensor, block: AttentionBlock, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled, masked scores [Hkv, F, n, lq, G, Lc] and [..., Lo] in float32."""
    hkv, f, n, lq, g, d = qf.shape
    sc = torch.bmm(qf.reshape(hkv * f, n * lq * g, d), kc.reshape(hkv * f, -1, d).transpose(1, 2))
    so = torch.bmm(qf.reshape(hkv * f * n, lq * g, d), ko.reshape(hkv * f * n, -1, d).transpose(1, 2))
    sc = widen(sc).mul_(scale).view(hkv, f, n, lq, g, -1)
    so = widen(so).mul_(scale).view(hkv, f, n, lq, g, -1)
    if block.context_hidden is not None:
        sc.masked_fill_(block.context_hidden[None, :, None, None, None, :], float("-inf"))
    if block.own_hidden is not None:
        so.masked_fill_(block.own_hidden[None, :, :, :, None, :], float("-inf"))
    return sc, so


def _block_forward(
    qh: Tensor, k: Tensor, v: Tensor, block: AttentionBlock, scale: float, unit: int
) -> tuple[Tensor, Tensor]:
    """Output [Hkv, F*n*lq, G, D] and log-sum-exp [Hkv, F*n*lq, G] of one block."""
    qf = queries(qh, block)
    hkv, f, n, lq, g, d = qf.shape
    kc, vc = gather(k, block.context, unit), gather(v, block.context, unit)
    ko, vo = gather(k, block.own, unit), gather(v, block.own, unit)
    sc, so = _scores(qf, kc, ko, block, scale)
    top = so.amax(-1, keepdim=True)
    if sc.shape[-1]:
        top = torch.maximum(top, sc.amax(-1, keepdim=True))
    pc, po = exp_(sc, top), exp_(so, top)
    total = pc.sum(-1, keepdim=True) + po.sum(-1, keepdim=True)
    out = torch.bmm(po.to(v.dtype).view(hkv * f * n, lq * g, -1), vo.reshape(hkv * f * n, -1, d)).view(
        hkv, f, n, lq, g, d
    )
    if sc.shape[-1]:
        out += torch.bmm(pc.to(v.dtype).view(hkv * f, n * lq * g, -1), vc.reshape(hkv * f, -1, d)).view_as(
            out
        )
    out = (out / total).to(v.dtype)
    lse = (top + total.log()).squeeze(-1)
    return out.view(hkv, -1, g, d), lse.reshape(hkv, -1, g)


def _run(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[AttentionBlock], scale: float, unit: int, exact: bool
) -> tuple[Tensor, Tensor]:
    qh = heads_first(q, k.shape[0])
    out = torch.empty_like(qh)
    lse = qh.new_empty(qh.shape[:3], dtype=wide_dtype(qh.dtype))
    for block in blocks:
        o, log_sum = (exact_forward if exact else _block_forward)(qh, k, v, block, scale, unit)
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


def _block_backward(
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
    """Add one block's gradients to dq, dk, dv; probabilities are recomputed from the saved log-sum-exp.

    Dao et al., arXiv 2205.14135.
    """
    qf = queries(qh, block)
    hkv, f, n, lq, g, d = qf.shape
    rows = block.rows.reshape(-1)
    do = dout.index_select(1, rows)
    if block.valid is not None:
        keep = torch.zeros(rows.shape[0], device=do.device, dtype=do.dtype)
        keep[block.valid] = 1
        do = do * keep.view(1, -1, 1, 1)
    delta = widen((do * out.index_select(1, rows)).sum(-1)).view(hkv, f, n, lq, g, 1)
    norm = lse.index_select(1, rows).view(hkv, f, n, lq, g, 1)
    kc, vc = gather(k, block.context, 1), gather(v, block.context, 1)
    ko, vo = gather(k, block.own, 1), gather(v, block.own, 1)
    sc, so = _scores(qf, kc, ko, block, scale)
    dqf = torch.zeros_like(qf).view(hkv * f * n, lq * g, d)
    for scores, key, value, index, batch in (
        (so, ko, vo, block.own, hkv * f * n),
        (sc, kc, vc, block.context, hkv * f),
    ):
        if not scores.shape[-1]:
            continue
        p = exp_(scores, norm)
        dof, q2 = do.view(batch, -1, d), qf.reshape(batch, -1, d)
        key, value = key.reshape(batch, -1, d), value.reshape(batch, -1, d)
        dp = widen(torch.bmm(dof, value.transpose(1, 2))).view_as(p)
        ds = dp.sub_(delta).mul_(p).mul_(scale).to(k.dtype).view(batch, -1, key.shape[1])
        dqf += torch.bmm(ds, key).view_as(dqf)
        flat = index.reshape(-1)
        dk.index_add_(1, flat, torch.bmm(ds.transpose(1, 2), q2).reshape(hkv, -1, d).to(dk.dtype))
        dv.index_add_(
            1,
            flat,
            torch.bmm(p.to(v.dtype).view_as(ds).transpose(1, 2), dof).reshape(hkv, -1, d).to(dv.dtype),
        )
    dq.index_add_(1, rows, dqf.view(hkv, -1, g, d))


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
        dq, dk, dv = torch.zeros_like(qh), torch.zeros_like(keys), torch.zeros_like(values)
        for block in ctx.blocks:
            _block_backward(block, ctx.scale, qh, keys, values, out, lse, dout, dq, dk, dv)
        dk, dv = dk.transpose(0, 1), dv.transpose(0, 1)
        if ctx.past is not None:
            first = ctx.past.rows
            ctx.past.add(dk[:first], dv[:first])
            dk, dv = dk[first:], dv[first:]
        return dq.transpose(0, 1).reshape(q.shape), dk, dv, None, None, None, None


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
