"""What the kernels of `span_attention` share: tiles of query rows, the spans they see, their sizes.

The query heads of a key head are folded into the rows of a tile: row i of a tile is query row i // G, head
i % G. Keys are then read once for all heads of a group, and short segments still fill a tile. Logarithms and
exponentials are in base 2: ``scale2`` is scale * log2 e, and the saved log-sum-exp is in base 2 too.
"""

from __future__ import annotations

import math

from torch import Tensor

from proactor.kernels.attention_sizes import Table, tile_sizes
from proactor.kernels.jit import interpreted, jit, tl, triton

LOG2E = math.log2(math.e)


@jit
def load_rows(ptr, at, valid, column, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows of D elements at element offsets ``at``, 0 where not ``valid`` or past D.

    WIDE: load as float32, because Triton's interpreter miscomputes bfloat16.
    """
    x = tl.load(ptr + at[:, None] + column[None, :], mask=valid[:, None] & (column < D)[None, :], other=0.0)
    return x.to(tl.float32) if WIDE else x


@jit
def visible_keys(row, key, end):
    """Mask [rows, keys]: keys below ``end`` at or before the row."""
    return row[:, None] >= tl.where(key < end, key, 2147483647)[None, :]


@jit
def load_tile(tile_ptr, head, G: tl.constexpr, M: tl.constexpr):
    """This program's tile: (first row, end, base, first span, last span, query row [M], query head [M]).

    The columns of `Spans.tiles`, then which query row and head each of the M tile rows holds. Row ``origin``
    is the first of q and of all that is shaped like it.
    """
    tile = tile_ptr + tl.program_id(0) * 5
    first, end, base = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    low, high = tl.load(tile + 3), tl.load(tile + 4)
    return first, end, base, low, high, first + tl.arange(0, M) // G, head * G + tl.arange(0, M) % G


@jit
def span_bounds(span_ptr, i, high, base, first, end, N: tl.constexpr):
    """Span i of a tile: (first key, end of the blocks that need no mask, end).

    Span ``high`` is not in the list: it is the run from ``base`` that ends in the tile itself.
    """
    start = tl.load(span_ptr + 2 * i, mask=i < high, other=0)
    stop = tl.load(span_ptr + 2 * i + 1, mask=i < high, other=0)
    start = tl.where(i < high, start, base)
    unmasked = tl.where(i < high, stop, first)
    return start, start + (unmasked - start) // N * N, tl.where(i < high, stop, end)


class LaunchPlan:
    """What the launches of one call share; q [T, Hq, D], k and v [T, Hkv, D] have contiguous rows."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.q, self.heads, self.kv_heads, self.dim = q, q.shape[1], k.shape[1], q.shape[2]
        self.group = self.heads // self.kv_heads
        self.strides = (q.stride(0), k.stride(0), v.stride(0))

    def sizes(self, table: Table) -> tuple[int, dict[str, int | bool]]:
        """(query rows per tile, the kernel's constants and launch settings) for this device and dtype."""
        row = tile_sizes(table, self.q)
        m = max(row["M"], triton.next_power_of_2(self.group))
        block_d = max(16, triton.next_power_of_2(self.dim))
        constants = {"D": self.dim, "G": self.group, "M": m, "N": row["N"], "BLOCK_D": block_d}
        settings = {"WIDE": interpreted(), "num_warps": row["warps"], "num_stages": row["stages"]}
        return m // self.group, constants | settings
