"""Backward kernels of `span_attention`, which gives the formulas: query, then key and value gradients.

No atomics: a tile of keys loops over the queries that see it, in a fixed order. A heavy tile is split into
parts, whose sums a last kernel adds up in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import KEY_GRADIENT, QUERY_GRADIENT
from proactor.kernels.jit import jit, jit_any, tl
from proactor.kernels.span_tiles import LOG2E, LaunchPlan, load_rows, load_tile, span_bounds, visible_keys
from proactor.kernels.spans import Spans


@jit
def _query_block(
    q,
    do,
    lse,
    delta,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    row,
    j,
    end,
    acc,
    scale2,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """``acc`` plus the terms of keys j … j + N - 1 in dq / scale."""
    key, column = j + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = load_rows(k_ptr, key.to(tl.int64) * k_stride, key < end, column, D, WIDE)
    v = load_rows(v_ptr, key.to(tl.int64) * v_stride, key < end, column, D, WIDE)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2 - lse[:, None]
    if MASKED:
        s = tl.where(visible_keys(row, key, end), s, float("-inf"))
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = tl.exp2(s) * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")


@jit_any("origin")
def span_query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    tile_ptr,
    span_ptr,
    scale,
    scale2,
    q_stride,
    k_stride,
    v_stride,
    heads,
    origin,
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid and tile as in the forward: dq [T - origin, Hq, D], and delta = do · out for the key gradients."""
    head, column = tl.program_id(1), tl.arange(0, BLOCK_D)
    first, end, base, low, high, row, query_head = load_tile(tile_ptr, head, G, M)
    place = (row - origin).to(tl.int64)
    q = load_rows(q_ptr, place * q_stride + query_head * D, row < end, column, D, WIDE)
    at = place * heads + query_head
    do = load_rows(do_ptr, at * D, row < end, column, D, WIDE)
    out = load_rows(out_ptr, at * D, row < end, column, D, WIDE)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + at, delta, mask=row < end)
    lse = tl.load(lse_ptr + at, mask=row < end, other=float("inf"))
    k_ptr, v_ptr = k_ptr + head * D, v_ptr + head * D
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for i in range(low, high + 1):
        start, whole, stop = span_bounds(span_ptr, i, high, base, first, end, N)
        for masked in tl.static_range(2):  # the blocks that need no mask, then the others
            for j in range(whole if masked else start, stop if masked else whole, N):
                acc = _query_block(
                    q,
                    do,
                    lse,
                    delta,
                    k_ptr,
                    v_ptr,
                    k_stride,
                    v_stride,
                    row,
                    j,
                    stop,
                    acc,
                    scale2,
                    MASKED=masked,
                    D=D,
                    N=N,
                    BLOCK_D=BLOCK_D,
                    WIDE=WIDE,
                )
    inside = (row < end)[:, None] & (column < D)[None, :]
    tl.store(dq_ptr + at[:, None] * D + column[None, :], acc * scale, mask=inside)


@jit_any("origin")
def span_key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    parts_ptr,
    item_ptr,
    entry_ptr,
    scale,
    scale2,
    q_stride,
    k_stride,
    v_stride,
    heads,
    kv_heads,
    origin,
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (items of `KeyWork`, key heads), tile [N keys, M query rows]: dk and dv [T, Hkv, D].

    An item is a tile of keys, or part of a split one: its sum goes to parts [slots, 2, Hkv, N, D] float32.
    """
    head = tl.program_id(1)
    item = item_ptr + tl.program_id(0) * 5
    first, stop = tl.load(item), tl.load(item + 1)
    low, high, slot = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    key, column = first + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = load_rows(k_ptr, key.to(tl.int64) * k_stride + head * D, key < stop, column, D, WIDE)
    v = load_rows(v_ptr, key.to(tl.int64) * v_stride + head * D, key < stop, column, D, WIDE)
    dk = tl.zeros([N, BLOCK_D], tl.float32)
    dv = tl.zeros([N, BLOCK_D], tl.float32)
    for i in range(low, high):
        entry = entry_ptr + 3 * i
        begin, end, limit = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        for j in range(begin, end, M // G):
            row, query_head = j + tl.arange(0, M) // G, head * G + tl.arange(0, M) % G
            valid = row < tl.minimum(end, j + M // G)  # M need not be a multiple of G
            place = (row - origin).to(tl.int64)
            at = place * heads + query_head
            q = load_rows(q_ptr, place * q_stride + query_head * D, valid, column, D, WIDE)
            do = load_rows(do_ptr, at * D, valid, column, D, WIDE)
            lse = tl.load(lse_ptr + at, mask=valid, other=float("inf"))
            delta = tl.load(delta_ptr + at, mask=valid, other=0.0)
            s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale2 - lse[None, :]
            p = tl.exp2(tl.where(tl.trans(visible_keys(row, key, limit)), s, float("-inf")))
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do), input_precision="ieee")
            dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    dk *= scale
    inside = (key < stop)[:, None] & (column < D)[None, :]
    if slot < 0:
        at = (key.to(tl.int64) * kv_heads + head)[:, None] * D + column[None, :]
        tl.store(dk_ptr + at, dk, mask=inside)
        tl.store(dv_ptr + at, dv, mask=inside)
    else:
        part = (slot * 2 * kv_heads + head).to(tl.int64) * N + tl.arange(0, N)
        at = part[:, None] * D + column[None, :]
        tl.store(parts_ptr + at, dk, mask=inside)
        tl.store(parts_ptr + at + kv_heads * N * D, dv, mask=inside)


@jit
def span_key_sum_kernel(
    parts_ptr, dk_ptr, dv_ptr, sum_ptr, kv_heads, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Grid (split tiles of keys, key heads, dk or dv), tile [N, D]: the sum of a tile's parts, in order."""
    head, which = tl.program_id(1), tl.program_id(2)
    entry = sum_ptr + tl.program_id(0) * 4
    first, stop, slot, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    key, column = first + tl.arange(0, N), tl.arange(0, BLOCK_D)
    inside = (key < stop)[:, None] & (column < D)[None, :]
    acc = tl.zeros([N, BLOCK_D], tl.float32)
    for i in range(slot, slot + count):
        place = ((i * 2 + which) * kv_heads + head).to(tl.int64) * N + tl.arange(0, N)
        acc += tl.load(parts_ptr + place[:, None] * D + column[None, :], mask=inside, other=0.0)
    at = (key.to(tl.int64) * kv_heads + head)[:, None] * D + column[None, :]
    if which == 0:
        tl.store(dk_ptr + at, acc, mask=inside)
    else:
        tl.store(dv_ptr + at, acc, mask=inside)


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, do: Tensor, spans: Spans, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq as q [T - origin, Hq, D], dk, dv [T, Hkv, D]); ``out`` and its gradient ``do`` are contiguous."""
    plan = LaunchPlan(q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    if not len(q):
        return dq, dk.zero_(), dv.zero_()
    rows, constants = plan.sizes(QUERY_GRADIENT)
    tiles, runs = spans.tiles(rows, q.device)
    scales, sizes = (scale, scale * LOG2E), (*plan.strides, plan.heads)
    span_query_gradient_kernel[(len(tiles), plan.kv_heads)](
        q,
        k,
        v,
        out,
        do,
        lse,
        delta,
        dq,
        tiles,
        runs,
        *scales,
        *plan.strides,
        plan.heads,
        spans.origin,
        **constants,
    )
    rows, constants = plan.sizes(KEY_GRADIENT)
    keys = int(constants["N"])
    work = spans.key_work(keys, rows, plan.kv_heads, q.device)
    parts = torch.empty((work.slots, 2, plan.kv_heads, keys, plan.dim), dtype=torch.float32, device=q.device)
    tensors = q, k, v, do, lse, delta, dk, dv, parts, work.items, work.entries
    span_key_gradient_kernel[(len(work.items), plan.kv_heads)](
        *tensors, *scales, *sizes, plan.kv_heads, spans.origin, **constants
    )
    if len(work.sums):
        span_key_sum_kernel[(len(work.sums), plan.kv_heads, 2)](
            parts, dk, dv, work.sums, plan.kv_heads, D=plan.dim, N=keys, BLOCK_D=constants["BLOCK_D"]
        )
    return dq, dk, dv
