"""Records of the three operations of `paged_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import DECODE, ROWS, Table, launches_by_size
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op
from proactor.kernels.paged_attention import (
    SPLIT,
    paged_attention,
    paged_attention_reference,
    paged_rows_attention,
    paged_rows_attention_reference,
    shared_prefix_attention,
    shared_prefix_attention_reference,
)
from proactor.kernels.paged_kernels import RowGroups, merge_parts_kernel, paged_attention_kernel

Heads = tuple[int, int, int]
"""(query heads, key heads, head dim)."""


class _Pool:
    """A KV cache that holds NaN in every free page, and in every slot past a sequence's length."""

    def __init__(
        self,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
        heads: Heads,
        unit: int,
        pages: int,
    ) -> None:
        self.generator, self.device, self.dtype, self.unit = generator, device, dtype, unit
        _, self.kv_heads, self.dim = heads
        shape = (self.kv_heads, pages * unit, self.dim)
        self.keys, self.values = (
            torch.full(shape, float("nan"), device=device, dtype=dtype) for _ in range(2)
        )
        self.free = torch.randperm(pages, generator=generator, device=device).tolist()

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def table(self, lengths: Sequence[int], spare: int = 0) -> Arguments:
        """Table and lengths of new sequences, with random keys and values; ``spare`` more columns of -1."""
        width = max((-(-n // self.unit) for n in lengths), default=0) + spare
        rows = []
        for n in lengths:
            pages = [self.free.pop() for _ in range(-(-n // self.unit))]
            for place, page in enumerate(pages):
                first, count = page * self.unit, min(self.unit, n - place * self.unit)
                for store in (self.keys, self.values):
                    store[:, first : first + count] = self.draw(self.kv_heads, count, self.dim)
            rows.append(pages + [-1] * (width - len(pages)))
        table = torch.tensor(rows, dtype=torch.int32, device=self.device).reshape(len(lengths), width)
        return {"table": table, "lengths": torch.tensor(lengths, dtype=torch.int32, device=self.device)}


def _decode_case(lengths: Sequence[int], heads: Heads, unit: int, split: int) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        pages = 3 + sum(-(-n // unit) for n in lengths)
        pool = _Pool(generator, device, dtype, heads, unit, pages)
        tables = pool.table(lengths, spare=1)
        q = pool.draw(len(lengths), heads[0], heads[2])
        store = {"keys": pool.keys, "values": pool.values}
        return {"q": q, **store, **tables, **_settings(heads, unit), "split": split}

    return Case(f"{_lengths_label(lengths)} {_heads_label(heads)} pages of {unit}, parts of {split}", make)


def _prefix_case(
    prefixes: Sequence[int],
    families: Sequence[Sequence[int]],
    own: Sequence[int],
    heads: Heads,
    unit: int,
    split: int,
) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        pages = 3 + sum(-(-n // unit) for n in (*prefixes, *own))
        pool = _Pool(generator, device, dtype, heads, unit, pages)
        prefix, suffix = pool.table(prefixes), pool.table(own, spare=1)
        return {
            "q": pool.draw(len(own), heads[0], heads[2]),
            "keys": pool.keys,
            "values": pool.values,
            **suffix,
            "prefix_table": prefix["table"],
            "prefix_lengths": prefix["lengths"],
            "families": RowGroups.of(families),
            **_settings(heads, unit),
            "split": split,
        }

    rows = f"{_lengths_label(prefixes)} for {_lengths_label([len(f) for f in families])}"
    return Case(f"{rows} {_heads_label(heads)} pages of {unit}, parts of {split}", make)


def _rows_case(chunks: Sequence[tuple[int, int]], heads: Heads, unit: int) -> Case:
    """``chunks``: (first token, token count) of each sequence's chunk."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        ends = [first + count for first, count in chunks]
        pool = _Pool(generator, device, dtype, heads, unit, 3 + sum(-(-n // unit) for n in ends))
        table = pool.table(ends, spare=1)["table"]
        visible = [t + 1 for first, count in chunks for t in range(first, first + count)]
        return {
            "q": pool.draw(len(visible), heads[0], heads[2]),
            "keys": pool.keys,
            "values": pool.values,
            "table": table,
            "visible": torch.tensor(visible, dtype=torch.int32, device=device),
            "sequences": RowGroups.runs([count for _, count in chunks]),
            **_settings(heads, unit),
        }

    return Case(f"{' '.join(f'{a}+{n}' for a, n in chunks)} {_heads_label(heads)} pages of {unit}", make)


def _settings(heads: Heads, unit: int) -> Arguments:
    return {"scale": heads[2] ** -0.5, "unit": unit}


def _lengths_label(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths)) if len(lengths) < 9 else f"{len(lengths)} of {max(lengths)}"


def _heads_label(heads: Heads) -> str:
    return "{}/{}x{}".format(*heads)


def _bytes(q: Tensor, keys: Tensor, keys_read: int) -> int:
    """Bytes of q, out, and ``keys_read`` keys and values of every head."""
    return 2 * q.nbytes + 2 * keys_read * len(keys) * keys.shape[2] * keys.element_size()


def _visible_keys(groups: RowGroups, lengths: Tensor) -> int:
    return int(lengths.cpu()[torch.from_numpy(groups.owner())].sum())


def _flops(q: Tensor, pairs: int) -> int:
    return 4 * pairs * q.shape[1] * q.shape[2]


def _timed_decode(shape: ModelShape) -> list[Case]:
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    return [
        _decode_case([length] * count, heads, 16, SPLIT)
        for count, length in ((1, 4096), (8, 4096), (64, 2048))
    ]


def _timed_prefix(shape: ModelShape) -> list[Case]:
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    families = [list(range(i, i + 16)) for i in range(0, 64, 16)]
    return [_prefix_case([4096] * 4, families, [256] * 64, heads, 16, SPLIT)]


def _timed_rows(shape: ModelShape) -> list[Case]:
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    return [_rows_case([(0, 2048)], heads, 16), _rows_case([(4096, 512)], heads, 16)]


def _launches(table: Table, by_row: bool, whole: bool) -> list[Launch]:
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16") | {"scale2": "fp32"}
    types |= dict.fromkeys(("out_ptr", "lse_ptr"), "*bf16" if whole else "*fp32")
    types |= dict.fromkeys(("table_ptr", "tile_ptr", "row_ptr", "visible_ptr"), "*i32")
    types |= dict.fromkeys(("q_stride", "slots", "pages", "split", "heads", "part0", "parts"), "i32")
    return launches_by_size(paged_attention_kernel, table, types, BY_ROW=by_row, WHOLE=whole, UNIT=16)


MERGE = Launch(
    merge_parts_kernel,
    {"part_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16", "parts": "i32"},
    {"D": 128, "BLOCK_P": 16, "BLOCK_D": 128},
    warps=1,
    stages=1,
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

PAGED_ATTENTION = Op(
    "paged_attention",
    paged_attention,
    paged_attention_reference,
    [
        _decode_case([], (5, 1, 16), 16, 16),
        _decode_case([1], (1, 1, 16), 16, 512),
        _decode_case([0, 3, 16, 33], (5, 1, 16), 16, 512),
        _decode_case([1, 70, 0, 32], (14, 2, 8), 32, 32),
        _decode_case([45, 17], (8, 1, 16), 16, 20),
        _decode_case([31], (6, 6, 24), 8, 16),
    ],
    TOLERANCE,
    bytes=lambda q, keys, values, table, lengths, scale, unit, split: _bytes(q, keys, int(lengths.sum())),
    flops=lambda q, keys, values, table, lengths, scale, unit, split: _flops(q, int(lengths.sum())),
    launches=[*_launches(DECODE, True, False), *_launches(DECODE, True, True), MERGE],
    timed=_timed_decode,
)
SHARED_PREFIX_ATTENTION = Op(
    "shared_prefix_attention",
    shared_prefix_attention,
    shared_prefix_attention_reference,
    [
        _prefix_case([], [], [], (5, 1, 16), 16, 16),
        _prefix_case([32], [[0, 1, 2]], [1, 5, 17], (5, 1, 16), 16, 512),
        _prefix_case([48, 0, 17], [[3, 0], [1], [4, 2]], [1, 20, 3, 16, 0], (14, 2, 8), 16, 16),
        _prefix_case([40], [[6, 5, 4, 3, 2, 1, 0]], [1, 2, 3, 4, 5, 6, 7], (8, 1, 16), 32, 32),
        _prefix_case([0, 0], [[0], [1]], [1, 19], (1, 1, 16), 16, 512),
    ],
    TOLERANCE,
    bytes=lambda q, keys, lengths, prefix_lengths, **_: _bytes(
        q, keys, int(lengths.sum()) + int(prefix_lengths.sum())
    ),
    flops=lambda q, lengths, prefix_lengths, families, **_: _flops(
        q, int(lengths.sum()) + _visible_keys(families, prefix_lengths)
    ),
    launches=_launches(ROWS, False, False),
    timed=_timed_prefix,
)
PAGED_ROWS_ATTENTION = Op(
    "paged_rows_attention",
    paged_rows_attention,
    paged_rows_attention_reference,
    [
        _rows_case([], (5, 1, 16), 16),
        _rows_case([(0, 1)], (7, 1, 16), 16),
        _rows_case([(0, 19), (30, 7)], (5, 1, 16), 16),
        _rows_case([(15, 3), (0, 0), (32, 9), (3, 1)], (14, 2, 8), 32),
        _rows_case([(5, 40)], (1, 1, 16), 16),
    ],
    TOLERANCE,
    bytes=lambda q, keys, values, table, visible, sequences, scale, unit: _bytes(
        q, keys, sum(int(visible[rows].max()) for rows in sequences.lists() if len(rows))
    ),
    flops=lambda q, keys, values, table, visible, sequences, scale, unit: _flops(q, int(visible.sum())),
    launches=_launches(ROWS, True, True),
    timed=_timed_rows,
)
