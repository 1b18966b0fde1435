"""Paged attention: new query rows against KV pages, for decoding, shared prefixes and chunked prefill.

    out_t = softmax(scale * q_t · K[: visible_t]) V[: visible_t]

K, V are the pages that a table row names, in order. Keys and values: [Hkv, S, D]; page p holds the slots
p * unit … (p + 1) * unit - 1. Slots that no row sees may hold NaN, and table entries past the visible pages
may hold anything. A row that sees no key gives 0. Lengths are read on the device only, so that a captured
CUDA graph follows them.

Long tables are split into parts of ``split`` keys, which run in parallel and are merged by their log-sum-exp,
in order ("flash decoding"). The split depends on a row's own keys alone, so the result is batch-invariant. A
prefix that a family of rows shares is read once for all of them.

Cascade attention: FlashInfer, Ye et al., arXiv 2501.01005.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import DECODE, ROWS
from proactor.kernels.op import require, use_triton
from proactor.kernels.paged_kernels import Pass, RowGroups, launch
from proactor.kernels.precision import widen

SPLIT = 512
"""Keys per part."""
KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_HEAD_DIM = 128
"""Larger heads, and float64, take the torch form on every device."""


def _dense(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attention of each row to its own ``slots`` [T, L], masked by ``visible`` bool [T, L]."""
    rows, heads, dim = q.shape
    k, v = keys[:, slots], values[:, slots].masked_fill(~visible[None, :, :, None], 0)
    grouped = q.reshape(rows, len(keys), heads // len(keys), dim)
    scores = widen(torch.einsum("thgd,htld->thgl", grouped, k)) * scale
    scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
    weights = scores.softmax(-1).masked_fill(~visible.any(1)[:, None, None, None], 0)
    return torch.einsum("thgl,htld->thgd", weights.to(v.dtype), v).reshape(rows, heads * dim)


def _slots(table: Tensor, visible: Tensor, unit: int, pages: int) -> tuple[Tensor, Tensor]:
    """(slots [T, P * unit] of each row's table [T, P], bool [T, P * unit]: whether the row sees them)."""
    place = torch.arange(unit, device=table.device)
    slots = (table.long().clamp(0, pages - 1)[:, :, None] * unit + place).flatten(1)
    return slots, torch.arange(slots.shape[1], device=table.device) < visible[:, None]


def paged_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    unit: int,
    split: int = SPLIT,
) -> Tensor:
    """`paged_attention` in plain torch."""
    return _dense(q, keys, values, *_slots(table, lengths, unit, keys.shape[1] // unit), scale)


def shared_prefix_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    prefix_table: Tensor,
    prefix_lengths: Tensor,
    families: RowGroups,
    scale: float,
    unit: int,
    split: int = SPLIT,
) -> Tensor:
    """`shared_prefix_attention` in plain torch."""
    family = torch.from_numpy(families.owner()).to(q.device)
    pages = keys.shape[1] // unit
    prefix = _slots(prefix_table[family], prefix_lengths[family], unit, pages)
    suffix = _slots(table, lengths, unit, pages)
    slots, visible = (torch.cat(pair, 1) for pair in zip(prefix, suffix, strict=True))
    return _dense(q, keys, values, slots, visible, scale)


def paged_rows_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    visible: Tensor,
    sequences: RowGroups,
    scale: float,
    unit: int,
) -> Tensor:
    """`paged_rows_attention` in plain torch."""
    owner = torch.from_numpy(sequences.owner()).to(q.device)
    return _dense(q, keys, values, *_slots(table[owner], visible, unit, keys.shape[1] // unit), scale)


# --- public ---


@lru_cache(maxsize=512)
def _one_row_each(count: int) -> RowGroups:
    return RowGroups.runs([1] * count)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    unit: int,
    split: int = SPLIT,
) -> Tensor:
    """Decoding: row i of q [B, Hq, D] sees the first lengths[i] keys of the pages table[i] -> [B, Hq * D].

    table int32 [B, P], lengths int32 [B]. On a GPU, float32, float16 and bfloat16 with D up to
    `KERNEL_HEAD_DIM` run in Triton; the rest takes the torch form. No gradient. Raises KernelError when
    shapes or dtypes do not match. Page numbers and lengths are not checked, since that would synchronise.
    """
    _check(q, keys, values, unit, split)
    _check_table("table", table, "lengths", lengths, len(q), len(q), q.device)
    if not _in_triton(q):
        return paged_attention_reference(q, keys, values, table, lengths, scale, unit)
    return _launch(
        q, keys, values, [Pass(table, lengths, _one_row_each(len(q)), True, DECODE)], scale, unit, split
    )


def shared_prefix_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    prefix_table: Tensor,
    prefix_lengths: Tensor,
    families: RowGroups,
    scale: float,
    unit: int,
    split: int = SPLIT,
) -> Tensor:
    """Decoding after shared prefixes: `paged_attention` where row i also sees the prefix of its family.

    prefix_table int32 [F, Pc], prefix_lengths int32 [F]; ``families``: the rows of each prefix. A prefix is
    read once for all its rows. Raises KernelError as `paged_attention`.
    """
    _check(q, keys, values, unit, split)
    _check_table("table", table, "lengths", lengths, len(q), len(q), q.device)
    _check_groups("families", families, len(q))
    count = len(families.offsets) - 1
    _check_table("prefix_table", prefix_table, "prefix_lengths", prefix_lengths, count, count, q.device)
    if not _in_triton(q):
        return shared_prefix_attention_reference(
            q, keys, values, table, lengths, prefix_table, prefix_lengths, families, scale, unit
        )
    prefix = Pass(prefix_table, prefix_lengths, families, False, ROWS)
    suffix = Pass(table, lengths, _one_row_each(len(q)), True, DECODE)
    return _launch(q, keys, values, [prefix, suffix], scale, unit, split)


def paged_rows_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    visible: Tensor,
    sequences: RowGroups,
    scale: float,
    unit: int,
) -> Tensor:
    """Chunked prefill: row t of q [T, Hq, D] sees the first visible[t] keys of its sequence -> [T, Hq * D].

    table int32 [N, P]: the pages of each sequence; visible int32 [T]; ``sequences``: the rows of each.
    Otherwise as `paged_attention`, in one part.
    """
    _check(q, keys, values, unit, 1)
    _check_groups("sequences", sequences, len(q))
    _check_table("table", table, "visible", visible, len(sequences.offsets) - 1, len(q), q.device)
    if not _in_triton(q):
        return paged_rows_attention_reference(q, keys, values, table, visible, sequences, scale, unit)
    whole = max(1, table.shape[1] * unit)
    return _launch(q, keys, values, [Pass(table, visible, sequences, True, ROWS)], scale, unit, whole)


def _in_triton(q: Tensor) -> bool:
    return use_triton(q) and q.dtype in KERNEL_TYPES and q.shape[2] <= KERNEL_HEAD_DIM


def _launch(
    q: Tensor, keys: Tensor, values: Tensor, passes: Sequence[Pass], scale: float, unit: int, split: int
) -> Tensor:
    if q.stride()[1:] != (q.shape[2], 1):
        q = q.contiguous()
    return launch(q, keys, values, passes, scale, unit, split).flatten(1)


def _check(q: Tensor, keys: Tensor, values: Tensor, unit: int, split: int) -> None:
    fits = q.dim() == 3 and 0 not in q.shape[1:] and q.is_floating_point()
    require(fits, "q", f"{q.dtype} {tuple(q.shape)}")
    fits = keys.dim() == 3 and keys.shape[2] == q.shape[2]
    require(fits, "keys", f"shape {tuple(keys.shape)}, q {tuple(q.shape)}")
    fits = len(keys) > 0 and q.shape[1] % len(keys) == 0
    require(fits, "keys", f"{len(keys)} heads for {q.shape[1]} query heads")
    shapes = f"shape {tuple(values.shape)} beside keys {tuple(keys.shape)}"
    require(values.shape == keys.shape, "values", shapes)
    for name, x in (("keys", keys), ("values", values)):
        same = x.dtype == q.dtype and x.device == q.device
        require(same, name, f"{x.dtype} on {x.device}, q {q.dtype} on {q.device}")
        require(x.is_contiguous(), name, "not contiguous")
    require(unit > 0 and keys.shape[1] % unit == 0, "unit", f"{unit} for {keys.shape[1]} slots")
    require(split > 0, "split", f"{split}")


def _check_table(
    name: str, table: Tensor, what: str, lengths: Tensor, rows: int, count: int, device: torch.device
) -> None:
    require(table.dim() == 2 and len(table) == rows, name, f"shape {tuple(table.shape)} for {rows} rows")
    require(lengths.shape == (count,), what, f"shape {tuple(lengths.shape)} for {count}")
    for key, x in ((name, table), (what, lengths)):
        fits = x.dtype == torch.int32 and x.device == device
        require(fits, key, f"{x.dtype} on {x.device}, not int32 on {device}")
        require(x.is_contiguous(), key, "not contiguous")


def _check_groups(name: str, groups: RowGroups, rows: int) -> None:
    require(len(groups.rows) == rows, name, f"{len(groups.rows)} rows for q with {rows}")
