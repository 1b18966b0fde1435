"""The Triton kernels of `span_attention`, which gives the formulas.

The query heads of a key head are folded into the rows of a tile (row i of a tile is query row i // G, head i
% G): keys are read once for all of them and short segments still fill a tile. Logarithms and exponentials are
in base 2: ``scale2`` is scale * log2 e, and so is the log-sum-exp kept for backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import FORWARD, KEY_GRADIENT, QUERY_GRADIENT, Table, chosen
from proactor.kernels.jit import interpreted, jit, tl, triton
from proactor.kernels.spans import Spans

LOG2E = math.log2(math.e)


@jit
def _rows(ptr, at, valid, column, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows of D elements at element offsets ``at``, 0 where not ``valid``. WIDE: in float32, for the
    interpreter computes wrongly in bfloat16.
    """
    x = tl.load(ptr + at[:, None] + column[None, :], mask=valid[:, None] & (column < D)[None, :], other=0.0)
    return x.to(tl.float32) if WIDE else x


@jit
def _seen(row, key, end):
    """Keys below ``end`` that do not stand behind the row: [rows, keys]."""
    return row[:, None] >= tl.where(key < end, key, 2147483647)[None, :]


@jit
def _tile(tile_ptr, head, G: tl.constexpr, M: tl.constexpr):
    """(first row, end, base, first span, end of spans; the query row and head of each of its M rows) of this
    program's tile.
    """
    tile = tile_ptr + tl.program_id(0) * 5
    first, end, base = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    low, high = tl.load(tile + 3), tl.load(tile + 4)
    return first, end, base, low, high, first + tl.arange(0, M) // G, head * G + tl.arange(0, M) % G


@jit
def _span(span_ptr, i, high, base, first, end, N: tl.constexpr):
    """(start, end of its whole visible blocks, end) of span i of a tile; the last, ``high``, is the run that
    ends in the tile itself.
    """
    start = tl.load(span_ptr + 2 * i, mask=i < high, other=0)
    stop = tl.load(span_ptr + 2 * i + 1, mask=i < high, other=0)
    start = tl.where(i < high, start, base)
    seen = tl.where(i < high, stop, first)
    return start, start + (seen - start) // N * N, tl.where(i < high, stop, end)


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
    """Take the keys j … j + N - 1 into the online softmax."""
    key, column = j + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = _rows(k_ptr, key.to(tl.int64) * k_stride, key < end, column, D, WIDE)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2
    if MASKED:
        s = tl.where(_seen(row, key, end), s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - new[:, None])
    keep = tl.exp2(top - new)
    v = _rows(v_ptr, key.to(tl.int64) * v_stride, key < end, column, D, WIDE)
    acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return new, total * keep + tl.sum(p, 1), acc


@jit
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
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program a (tile of query rows, key head): out [T, Hq, D] and the log-sum-exp [T, Hq]."""
    head, column = tl.program_id(1), tl.arange(0, BLOCK_D)
    first, end, base, low, high, row, query_head = _tile(tile_ptr, head, G, M)
    q = _rows(q_ptr, row.to(tl.int64) * q_stride + query_head * D, row < end, column, D, WIDE)
    k_ptr, v_ptr = k_ptr + head * D, v_ptr + head * D
    top = tl.full(
        [M], float("-inf"), tl.float32
    )  # finite after the first block: its first key is seen by every row
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for i in range(low, high + 1):
        start, whole, stop = _span(span_ptr, i, high, base, first, end, N)
        for j in range(start, whole, N):
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
                False,
                D,
                N,
                BLOCK_D,
                WIDE,
            )
        for j in range(whole, stop, N):
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
                True,
                D,
                N,
                BLOCK_D,
                WIDE,
            )
    at = row.to(tl.int64) * heads + query_head
    tl.store(lse_ptr + at, top + tl.log2(total), mask=row < end)
    there = (row < end)[:, None] & (column < D)[None, :]
    tl.store(out_ptr + at[:, None] * D + column[None, :], acc / total[:, None], mask=there)


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
    """Add what the keys j … j + N - 1 give to dq / scale."""
    key, column = j + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = _rows(k_ptr, key.to(tl.int64) * k_stride, key < end, column, D, WIDE)
    v = _rows(v_ptr, key.to(tl.int64) * v_stride, key < end, column, D, WIDE)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2 - lse[:, None]
    if MASKED:
        s = tl.where(_seen(row, key, end), s, float("-inf"))
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = tl.exp2(s) * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")


@jit
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
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Over the tiles of the forward: dq [T, Hq, D], and delta = do · out [T, Hq] for the key gradients."""
    head, column = tl.program_id(1), tl.arange(0, BLOCK_D)
    first, end, base, low, high, row, query_head = _tile(tile_ptr, head, G, M)
    q = _rows(q_ptr, row.to(tl.int64) * q_stride + query_head * D, row < end, column, D, WIDE)
    at = row.to(tl.int64) * heads + query_head
    do = _rows(do_ptr, at * D, row < end, column, D, WIDE)
    out = _rows(out_ptr, at * D, row < end, column, D, WIDE)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + at, delta, mask=row < end)
    lse = tl.load(lse_ptr + at, mask=row < end, other=float("inf"))
    k_ptr, v_ptr = k_ptr + head * D, v_ptr + head * D
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for i in range(low, high + 1):
        start, whole, stop = _span(span_ptr, i, high, base, first, end, N)
        for j in range(start, whole, N):
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
                False,
                D,
                N,
                BLOCK_D,
                WIDE,
            )
        for j in range(whole, stop, N):
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
                True,
                D,
                N,
                BLOCK_D,
                WIDE,
            )
    there = (row < end)[:, None] & (column < D)[None, :]
    tl.store(dq_ptr + at[:, None] * D + column[None, :], acc * scale, mask=there)


@jit
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
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program a (tile of keys, key head) or part of it: dk and dv [T, Hkv, D], or a partial sum into
    parts [slots, 2, Hkv, N, D] in float32.
    """
    head = tl.program_id(1)
    item = item_ptr + tl.program_id(0) * 5
    first, stop = tl.load(item), tl.load(item + 1)
    low, high, slot = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    key, column = first + tl.arange(0, N), tl.arange(0, BLOCK_D)
    k = _rows(k_ptr, key.to(tl.int64) * k_stride + head * D, key < stop, column, D, WIDE)
    v = _rows(v_ptr, key.to(tl.int64) * v_stride + head * D, key < stop, column, D, WIDE)
    dk = tl.zeros([N, BLOCK_D], tl.float32)
    dv = tl.zeros([N, BLOCK_D], tl.float32)
    for i in range(low, high):
        begin, end, limit = (
            tl.load(entry_ptr + 3 * i),
            tl.load(entry_ptr + 3 * i + 1),
            tl.load(entry_ptr + 3 * i + 2),
        )
        for j in range(begin, end, M // G):
            row, query_head = j + tl.arange(0, M) // G, head * G + tl.arange(0, M) % G
            valid = row < tl.minimum(end, j + M // G)  # M need not be a multiple of G
            at = row.to(tl.int64) * heads + query_head
            q = _rows(q_ptr, row.to(tl.int64) * q_stride + query_head * D, valid, column, D, WIDE)
            do = _rows(do_ptr, at * D, valid, column, D, WIDE)
            lse = tl.load(lse_ptr + at, mask=valid, other=float("inf"))
            delta = tl.load(delta_ptr + at, mask=valid, other=0.0)
            s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale2 - lse[None, :]
            p = tl.exp2(tl.where(tl.trans(_seen(row, key, limit)), s, float("-inf")))
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
            dp = tl.dot(v, tl.trans(do), input_precision="ieee")
            dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    dk *= scale
    if slot < 0:
        at = (key.to(tl.int64) * kv_heads + head)[:, None] * D + column[None, :]
        there = (key < stop)[:, None] & (column < D)[None, :]
        tl.store(dk_ptr + at, dk, mask=there)
        tl.store(dv_ptr + at, dv, mask=there)
    else:
        place = (slot * 2 * kv_heads + head).to(tl.int64) * N + tl.arange(0, N)
        at = place[:, None] * D + column[None, :]
        there = (key < stop)[:, None] & (column < D)[None, :]
        tl.store(parts_ptr + at, dk, mask=there)
        tl.store(parts_ptr + at + kv_heads * N * D, dv, mask=there)


@jit
def span_key_sum_kernel(
    parts_ptr, dk_ptr, dv_ptr, sum_ptr, kv_heads, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One program a (split tile of keys, key head, dk or dv): adds its parts up in order."""
    head, which = tl.program_id(1), tl.program_id(2)
    entry = sum_ptr + tl.program_id(0) * 4
    first, stop, slot, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    key, column = first + tl.arange(0, N), tl.arange(0, BLOCK_D)
    there = (key < stop)[:, None] & (column < D)[None, :]
    acc = tl.zeros([N, BLOCK_D], tl.float32)
    for i in range(slot, slot + count):
        place = ((i * 2 + which) * kv_heads + head).to(tl.int64) * N + tl.arange(0, N)
        acc += tl.load(parts_ptr + place[:, None] * D + column[None, :], mask=there, other=0.0)
    at = (key.to(tl.int64) * kv_heads + head)[:, None] * D + column[None, :]
    if which == 0:
        tl.store(dk_ptr + at, acc, mask=there)
    else:
        tl.store(dv_ptr + at, acc, mask=there)


# --- launches ---


class _Plan:
    """What the launches of one call share: q [T, Hq, D], k and v [T, Hkv, D] with contiguous rows."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.q, self.heads, self.kv_heads, self.dim = q, q.shape[1], k.shape[1], q.shape[2]
        self.group = self.heads // self.kv_heads
        self.strides = (q.stride(0), k.stride(0), v.stride(0))

    def sizes(self, table: Table) -> tuple[int, dict[str, int | bool]]:
        """Query rows a tile and the kernel's constants and launch settings."""
        row = chosen(table, self.q)
        m, block_d = (
            max(row["M"], triton.next_power_of_2(self.group)),
            max(16, triton.next_power_of_2(self.dim)),
        )
        constants = {
            "D": self.dim,
            "G": self.group,
            "M": m,
            "N": row["N"],
            "BLOCK_D": block_d,
            "WIDE": interpreted(),
        }
        return m // self.group, constants | {"num_warps": row["warps"], "num_stages": row["stages"]}


def launch_forward(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
    """(out [T, Hq, D], base 2 log-sum-exp [T, Hq])."""
    plan = _Plan(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    rows, constants = plan.sizes(FORWARD)
    tiles, runs = spans.tiles(rows, q.device)
    if len(tiles):
        span_forward_kernel[(len(tiles), plan.kv_heads)](
            q, k, v, out, lse, tiles, runs, scale * LOG2E, *plan.strides, plan.heads, **constants
        )
    return out, lse


def launch_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, do: Tensor, spans: Spans, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq [T, Hq, D], dk and dv [T, Hkv, D]); ``out`` and ``do`` contiguous."""
    plan = _Plan(q, k, v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    if not spans.rows:
        return dq, dk, dv
    rows, constants = plan.sizes(QUERY_GRADIENT)
    tiles, runs = spans.tiles(rows, q.device)
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
        scale,
        scale * LOG2E,
        *plan.strides,
        plan.heads,
        **constants,
    )
    rows, constants = plan.sizes(KEY_GRADIENT)
    keys = int(constants["N"])
    work = spans.key_work(keys, rows, plan.kv_heads, q.device)
    parts = torch.empty((work.slots, 2, plan.kv_heads, keys, plan.dim), dtype=torch.float32, device=q.device)
    span_key_gradient_kernel[(len(work.items), plan.kv_heads)](
        q,
        k,
        v,
        do,
        lse,
        delta,
        dk,
        dv,
        parts,
        work.items,
        work.entries,
        scale,
        scale * LOG2E,
        *plan.strides,
        plan.heads,
        plan.kv_heads,
        **constants,
    )
    if len(work.sums):
        span_key_sum_kernel[(len(work.sums), plan.kv_heads, 2)](
            parts, dk, dv, work.sums, plan.kv_heads, D=plan.dim, N=keys, BLOCK_D=constants["BLOCK_D"]
        )
    return dq, dk, dv
