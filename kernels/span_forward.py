"""Forward kernel of `span_attention`, which gives the formulas; `span_tiles` gives the layout of a tile."""

from __future__ import annotations

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import FORWARD
from proactor.kernels.jit import jit, jit_any, tl
from proactor.kernels.span_tiles import LOG2E, LaunchPlan, load_rows, load_tile, span_bounds, visible_keys
from proactor.kernels.spans import Spans


@jit
def _forward_block(
    q,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    row,
    j,
    end,
    top,
    total,
    acc,
    scale2,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One step of the online softmax over keys j … j + N - 1: (new maximum, sum, accumulator)."""
    key, column = j + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = load_rows(k_ptr, key.to(tl.int64) * k_stride, key < end, column, D, WIDE)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2
    if MASKED:
        s = tl.where(visible_keys(row, key, end), s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - new[:, None])
    keep = tl.exp2(top - new)
    v = load_rows(v_ptr, key.to(tl.int64) * v_stride, key < end, column, D, WIDE)
    acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return new, total * keep + tl.sum(p, 1), acc


@jit_any("origin")
def span_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    tile_ptr,
    span_ptr,
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
    """Grid (tiles of query rows, key heads), tile [M, N]: out [T - origin, Hq, D] and base 2 log-sum-exp."""
    head, column = tl.program_id(1), tl.arange(0, BLOCK_D)
    first, end, base, low, high, row, query_head = load_tile(tile_ptr, head, G, M)
    place = (row - origin).to(tl.int64)
    q = load_rows(q_ptr, place * q_stride + query_head * D, row < end, column, D, WIDE)
    k_ptr, v_ptr = k_ptr + head * D, v_ptr + head * D
    # finite after the first block, whose first key every row sees
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for i in range(low, high + 1):
        start, whole, stop = span_bounds(span_ptr, i, high, base, first, end, N)
        for masked in tl.static_range(2):  # the blocks that need no mask, then the others
            for j in range(whole if masked else start, stop if masked else whole, N):
                top, total, acc = _forward_block(
                    q,
                    k_ptr,
                    v_ptr,
                    k_stride,
                    v_stride,
                    row,
                    j,
                    stop,
                    top,
                    total,
                    acc,
                    scale2,
                    MASKED=masked,
                    D=D,
                    N=N,
                    BLOCK_D=BLOCK_D,
                    WIDE=WIDE,
                )
    at = place * heads + query_head
    tl.store(lse_ptr + at, top + tl.log2(total), mask=row < end)
    inside = (row < end)[:, None] & (column < D)[None, :]
    tl.store(out_ptr + at[:, None] * D + column[None, :], acc / total[:, None], mask=inside)


def launch_forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
    """(out as q [T - origin, Hq, D], base 2 log-sum-exp [T - origin, Hq] float32); k and v [T, Hkv, D]."""
    plan = LaunchPlan(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    rows, constants = plan.sizes(FORWARD)
    tiles, runs = spans.tiles(rows, q.device)
    sizes = (*plan.strides, plan.heads, spans.origin)
    if len(tiles):
        span_forward_kernel[(len(tiles), plan.kv_heads)](
            q, k, v, out, lse, tiles, runs, scale * LOG2E, *sizes, **constants
        )
    return out, lse
