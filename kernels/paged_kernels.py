"""Triton kernels of `paged_attention`, the row groups that they read, and their launch.

A tile holds query rows of one table row, with the query heads of a key head folded in: row i of a tile is
query row i // G, head i % G. Exponentials are in base 2: ``scale2`` is scale * log2 e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.kernels.attention_sizes import ROWS, Table, tile_sizes
from proactor.kernels.jit import interpreted, jit_any, tl, triton
from proactor.kernels.op import require
from proactor.kernels.span_tiles import LOG2E, load_rows
from proactor.kernels.spans import Int32, cut, to_device


@jit_any("pages", "split", "part0", "parts")
def paged_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    tile_ptr,
    row_ptr,
    visible_ptr,
    out_ptr,
    lse_ptr,
    scale2,
    q_stride,
    slots,
    pages,
    split,
    heads,
    part0,
    parts,
    BY_ROW: tl.constexpr,
    WHOLE: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (tiles, key heads, parts of ``split`` keys), tile [M query rows, N keys].

    BY_ROW: ``visible`` is indexed by query row, else by table row. WHOLE: there is one part, and out
    [T, Hq, D] is final. Otherwise the part's normalised output goes to out [T, Hq, parts, D] and its
    log-sum-exp to lse [T, Hq, parts], -inf where a row sees no key of the part.
    """
    head, part = tl.program_id(1), tl.program_id(2)
    tile = tile_ptr + tl.program_id(0) * 3
    owner, first, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    index, query_head = first + tl.arange(0, M) // G, head * G + tl.arange(0, M) % G
    valid = index < end
    column = tl.arange(0, BLOCK_D)
    row = tl.load(row_ptr + index, mask=valid, other=0)
    if BY_ROW:
        visible = tl.load(visible_ptr + row, mask=valid, other=0)
    else:
        visible = tl.where(valid, tl.load(visible_ptr + owner), 0)
    begin = part * split
    stop = tl.minimum(tl.max(visible, 0), begin + split)
    at = row.to(tl.int64) * q_stride + query_head * D
    inside = valid[:, None] & (column < D)[None, :]
    q = load_rows(q_ptr, at, valid, column, D, WIDE)
    base = head.to(tl.int64) * slots * D
    table = table_ptr + owner.to(tl.int64) * pages
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for j in range(begin, stop, N):
        key = j + tl.arange(0, N)
        live = key < stop
        page = tl.load(table + key // UNIT, mask=live, other=0)
        slot = page.to(tl.int64) * UNIT + key % UNIT
        k = load_rows(k_ptr + base, slot * D, live, column, D, WIDE)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2
        s = tl.where(key[None, :] < tl.minimum(visible, stop)[:, None], s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(new > float("-inf"), new, 0.0)  # 0 while a row has seen no key
        p = tl.exp2(s - shift[:, None])
        keep = tl.exp2(top - shift)
        v = load_rows(v_ptr + base, slot * D, live, column, D, WIDE)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        top, total = new, total * keep + tl.sum(p, 1)
    empty = total == 0.0  # not so for NaN, which has to show
    divisor = tl.where(empty, 1.0, total)
    out = acc / divisor[:, None]
    at = row.to(tl.int64) * heads + query_head
    if WHOLE:
        tl.store(out_ptr + at[:, None] * D + column[None, :], out, mask=inside)
    else:
        at = at * parts + part0 + part
        tl.store(lse_ptr + at, tl.where(empty, float("-inf"), top + tl.log2(divisor)), mask=valid)
        tl.store(out_ptr + at[:, None] * D + column[None, :], out, mask=inside & (total != 0.0)[:, None])


@jit_any("parts")
def merge_parts_kernel(
    part_ptr, lse_ptr, out_ptr, parts, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Grid (query rows * query heads), tile [D]: parts weighted by their share of the softmax sum, in order.

    A row that saw no key gives 0.
    """
    at = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, BLOCK_P)
    column = tl.arange(0, BLOCK_D)
    top = tl.max(tl.load(lse_ptr + at * parts + every, mask=every < parts, other=float("-inf")), 0)
    top = tl.where(top > float("-inf"), top, 0.0)
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for i in range(parts):
        lse = tl.load(lse_ptr + at * parts + i)
        weight = tl.exp2(lse - top)
        written = column < tl.where(lse == float("-inf"), 0, D)  # a part without visible keys is never stored
        total += weight
        acc += weight * tl.load(part_ptr + (at * parts + i) * D + column, mask=written, other=0.0)
    tl.store(out_ptr + at * D + column, acc / tl.where(total == 0.0, 1.0, total), mask=column < D)


# --- launches ---


@dataclass(frozen=True, slots=True, eq=False)
class RowGroups:
    """Which query rows read which table row: ``rows[offsets[i] : offsets[i + 1]]`` read table row i.

    Build it once and keep it: tiles are cached per device.
    """

    rows: Int32
    offsets: Int32
    _cache: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]]) -> RowGroups:
        """From the query rows of each table row. Raises KernelError unless each of 0 … T - 1 occurs once."""
        rows = np.asarray([row for group in groups for row in group], np.int32)
        is_partition = bool((np.sort(rows) == np.arange(len(rows))).all())
        require(is_partition, "groups", "every query row must stand in exactly one")
        return cls(rows, np.cumsum([0, *(len(group) for group in groups)], dtype=np.int32))

    @classmethod
    def runs(cls, counts: Sequence[int]) -> RowGroups:
        """Table row i is read by the next counts[i] query rows. Raises KernelError for a negative count."""
        require(all(n >= 0 for n in counts), "counts", f"{list(counts)}")
        return cls(np.arange(sum(counts), dtype=np.int32), np.cumsum([0, *counts], dtype=np.int32))

    def lists(self) -> list[list[int]]:
        """The query rows of each table row."""
        return [self.rows[a:b].tolist() for a, b in pairwise(self.offsets.tolist())]

    def owner(self) -> NDArray[np.int64]:
        """The table row of each query row [T]."""
        owner = np.empty(len(self.rows), np.int64)
        owner[self.rows] = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return owner

    def tiles(self, most: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tiles int32 [N, 3] of up to ``most`` rows (table row, first index, end), and ``rows`` int32 [T]."""
        if (most, device) not in self._cache:
            owner, first = cut(self.offsets[:-1], np.diff(self.offsets), most)
            tiles = np.stack([owner, first, np.minimum(first + most, self.offsets[owner + 1])], 1)
            self._cache[most, device] = to_device(tiles, device), to_device(self.rows, device)
        return self._cache[most, device]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a table: the query rows of ``groups`` see the first ``visible`` keys of their table row.

    ``visible`` int32 holds one count per query row if ``by_row``, else one per table row.
    """

    table: Tensor
    visible: Tensor
    groups: RowGroups
    by_row: bool
    sizes: Table


def launch(
    q: Tensor, keys: Tensor, values: Tensor, passes: Sequence[Pass], scale: float, unit: int, split: int
) -> Tensor:
    """Attention [T, Hq, D] over the keys of all passes together, in parts of ``split`` keys."""
    counts = [-(-p.table.shape[1] * unit // split) for p in passes]
    parts = sum(counts)
    if not parts or not len(q):
        return torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    heads, dim = q.shape[1:]
    group = heads // len(keys)
    block_d = max(16, triton.next_power_of_2(dim))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    partial, lse = out, out
    if parts > 1:
        partial = torch.empty((len(q), heads, parts, dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((len(q), heads, parts), dtype=torch.float32, device=q.device)
    before = 0
    for p, count in zip(passes, counts, strict=True):
        row = tile_sizes(p.sizes, q)
        m = max(row["M"], triton.next_power_of_2(group))
        tiles, rows = p.groups.tiles(m // group if p.sizes is ROWS else 1, q.device)
        if count:
            tensors = q, keys, values, p.table, tiles, rows, p.visible, partial, lse
            sizes = q.stride(0), keys.shape[1], p.table.shape[1], split, heads, before, parts
            constants = {"BY_ROW": p.by_row, "WHOLE": parts == 1, "UNIT": unit, "D": dim, "G": group}
            constants |= {"M": m, "N": row["N"], "BLOCK_D": block_d, "WIDE": interpreted()}
            settings = {"num_warps": row["warps"], "num_stages": row["stages"]}
            paged_attention_kernel[(len(tiles), len(keys), count)](
                *tensors, scale * LOG2E, *sizes, **constants, **settings
            )
        before += count
    if parts > 1:
        merge_parts_kernel[(len(q) * heads,)](
            partial, lse, out, parts, dim, triton.next_power_of_2(parts), block_d, num_warps=1
        )
    return out
