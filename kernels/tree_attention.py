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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.past import Past, joined
from proactor.kernels.precision import exp_, wide_dtype, widen

EXACT_BLOCK = 32
EXACT_TILE_BYTES = 64 << 20


@dataclass(slots=True)
class AttentionBlock:
    """F families of n members with lq query rows each.

    rows [F, n, lq]: query rows (padding repeats a real row); valid: flat positions of the real ones in
    ``rows``, None if all are real; context [F, c] and own [F, n, o]: units of the key store; context_hidden
    [F, Lc] and own_hidden [F, n, lq, Lo]: bool, True for hidden keys, None if all are visible (Lc = c * unit
    and Lo = o * unit keys). Hidden keys may be NaN; hidden values must be finite: their weight
    is next to nothing (`precision.FAINT`), but not 0.
    """

    rows: Tensor
    context: Tensor
    own: Tensor
    valid: Tensor | None = None
    context_hidden: Tensor | None = None
    own_hidden: Tensor | None = None

    def to(self, device: torch.device) -> AttentionBlock:
        """The block with its tensors on ``device``; itself if they are on it."""
        if self.rows.device == device:
            return self
        optional = [
            None if t is None else t.to(device) for t in (self.valid, self.context_hidden, self.own_hidden)
        ]
        return AttentionBlock(self.rows.to(device), self.context.to(device), self.own.to(device), *optional)


def _heads_first(x: Tensor, kv_heads: int) -> Tensor:
    """[T, Hq, D] -> [Hkv, T, G, D] contiguous."""
    t, hq, d = x.shape
    return x.view(t, kv_heads, hq // kv_heads, d).transpose(0, 1).contiguous()


def _gather(store: Tensor, index: Tensor, unit: int) -> Tensor:
    """Rows of store [Hkv, S, D] of the units ``index`` [..., u] -> [Hkv, prod(...), u * unit, D]."""
    hkv, s, d = store.shape
    flat = store.view(hkv, s // unit, unit * d).index_select(1, index.reshape(-1))
    return flat.view(hkv, index.shape[:-1].numel(), index.shape[-1] * unit, d)


def _queries(qh: Tensor, block: AttentionBlock) -> Tensor:
    hkv, _, g, d = qh.shape
    return qh.index_select(1, block.rows.reshape(-1)).view(hkv, *block.rows.shape, g, d)


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
    qf = _queries(qh, block)
    hkv, f, n, lq, g, d = qf.shape
    kc, vc = _gather(k, block.context, unit), _gather(v, block.context, unit)
    ko, vo = _gather(k, block.own, unit), _gather(v, block.own, unit)
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


def _scatter(target: Tensor, block: AttentionBlock, value: Tensor) -> None:
    rows = block.rows.reshape(-1)
    if block.valid is not None:
        rows, value = rows[block.valid], value.index_select(1, block.valid)
    target.index_copy_(1, rows, value)


def _run(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[AttentionBlock], scale: float, unit: int, exact: bool
) -> tuple[Tensor, Tensor]:
    qh = _heads_first(q, k.shape[0])
    out = torch.empty_like(qh)
    lse = qh.new_empty(qh.shape[:3], dtype=wide_dtype(qh.dtype))
    for block in blocks:
        o, log_sum = (_exact_forward if exact else _block_forward)(qh, k, v, block, scale, unit)
        _scatter(out, block, o)
        _scatter(lse, block, log_sum)
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


# --- fixed order ---


def _exact_forward(
    qh: Tensor, k: Tensor, v: Tensor, block: AttentionBlock, scale: float, unit: int
) -> tuple[Tensor, Tensor]:
    """As `_block_forward`, with one product per (row, key block): summation order depends on depth alone."""
    qf = _queries(qh, block)
    hkv, f, n, lq, g, d = qf.shape
    path, hidden = _paths(block, unit)
    length = path.shape[-1]
    out, lse = qf.new_empty(hkv, f * n, lq, g, d), qf.new_empty(hkv, f * n, lq, g, dtype=wide_dtype(qf.dtype))
    qm = qf.reshape(hkv, f * n, lq, g, d)
    tile = max(1, EXACT_TILE_BYTES // max(1, hkv * f * n * length * d * 4))
    kp, vp = k.index_select(1, path.reshape(-1)), v.index_select(1, path.reshape(-1))
    kp, vp = kp.view(hkv, f * n, 1, length, d), vp.view(hkv, f * n, 1, length, d)
    vp.masked_fill_(hidden.all(1)[None, :, None, :, None], 0)
    for start in range(0, lq, tile):
        rows = slice(start, min(lq, start + tile))
        out[:, :, rows], lse[:, :, rows] = _exact_tile(qm[:, :, rows], kp, vp, hidden[:, rows], scale)
    return out.reshape(hkv, -1, g, d), lse.reshape(hkv, -1, g)


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
    top = flat.new_full((count, g, 1), float("-inf"), dtype=wide_dtype(flat.dtype))
    total = torch.zeros_like(top)
    acc = flat.new_zeros((count, g, d), dtype=top.dtype)
    for start in range(0, k.shape[3], EXACT_BLOCK):
        keys = slice(start, start + EXACT_BLOCK)
        kb = k[:, :, :, keys].expand(hkv, b, r, EXACT_BLOCK, d).reshape(count, EXACT_BLOCK, d)
        vb = v[:, :, :, keys].expand(hkv, b, r, EXACT_BLOCK, d).reshape(count, EXACT_BLOCK, d)
        s = widen(torch.bmm(flat, kb.transpose(1, 2))) * scale
        masked = hidden[None, :, :, None, keys].expand(hkv, b, r, 1, EXACT_BLOCK)
        s = s.masked_fill(masked.reshape(count, 1, EXACT_BLOCK), float("-inf"))
        new_top = torch.maximum(top, s.amax(-1, keepdim=True))
        p = (s - new_top).exp()
        keep = (top - new_top).exp()
        total = total * keep + p.sum(-1, keepdim=True)
        acc = acc * keep + widen(torch.bmm(p.to(v.dtype), vb))
        top = new_top
    out = (acc / total).to(v.dtype)
    return out.view(hkv, b, r, g, d), (top + total.log()).view(hkv, b, r, g)


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
    qf = _queries(qh, block)
    hkv, f, n, lq, g, d = qf.shape
    rows = block.rows.reshape(-1)
    do = dout.index_select(1, rows)
    if block.valid is not None:
        keep = torch.zeros(rows.shape[0], device=do.device, dtype=do.dtype)
        keep[block.valid] = 1
        do = do * keep.view(1, -1, 1, 1)
    delta = widen((do * out.index_select(1, rows)).sum(-1)).view(hkv, f, n, lq, g, 1)
    norm = lse.index_select(1, rows).view(hkv, f, n, lq, g, 1)
    kc, vc = _gather(k, block.context, 1), _gather(v, block.context, 1)
    ko, vo = _gather(k, block.own, 1), _gather(v, block.own, 1)
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
        qh, out, dout = (_heads_first(x.reshape(q.shape), k.shape[1]) for x in (q, flat, grads[0]))
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
