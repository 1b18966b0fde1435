"""Paged attention beyond its records: the forms agree, results are batch-invariant, tiles, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    paged_rows_attention,
    shared_prefix_attention,
)
from proactor.kernels.paged_kernels import RowGroups

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() or not torch.cuda.is_available() else "cuda")
UNIT, PAGES, SCALE = 16, 24, 0.25


def _ints(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE)


def _draw(rows: int, heads: int = 10, kv_heads: int = 2, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device=DEVICE).manual_seed(5)
    shapes = ((rows, heads, dim), (kv_heads, PAGES * UNIT, dim), (kv_heads, PAGES * UNIT, dim))
    q, keys, values = (torch.randn(s, generator=generator, device=DEVICE) for s in shapes)
    return q, keys, values


@pytest.mark.parametrize("way", [pytest.param("triton", marks=needs_triton), "reference"])
def test_the_three_forms_agree(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of 35, 50 and 33 tokens; the first two share a prefix of 32, and are not adjacent."""
    monkeypatch.setenv("PROACTOR_KERNELS", way)
    q, keys, values = _draw(3)
    table = _ints([[7, 3, 9, -5], [1, 2, 20, 99], [7, 3, 4, 11]])
    plain = paged_attention(q, keys, values, table, _ints([35, 33, 50]), SCALE, UNIT, 32)
    shared = shared_prefix_attention(
        q,
        keys,
        values,
        _ints([[9, -5, 0], [1, 2, 20], [4, 11, -1]]),
        _ints([3, 33, 18]),
        _ints([[7, 3], [-1, 99]]),
        _ints([32, 0]),
        RowGroups.of([[2, 0], [1]]),
        SCALE,
        UNIT,
        16,
    )
    rows = paged_rows_attention(
        q, keys, values, table, _ints([35, 33, 50]), RowGroups.runs([1, 1, 1]), SCALE, UNIT
    )
    wanted = paged_attention_reference(
        q.double(), keys.double(), values.double(), table, _ints([35, 33, 50]), SCALE, UNIT
    )
    for out in (plain, shared, rows):
        torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)


@needs_triton
def test_bits_of_a_row_do_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits depend neither on the other rows nor on the table's width."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    q, keys, values = _draw(3)
    table, lengths = _ints([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [10, 11, 12, 0, 0]]), _ints([79, 20, 45])
    every = paged_attention(q, keys, values, table, lengths, SCALE, UNIT, 32)
    for i, width in ((1, 3), (2, 3), (2, 4)):
        alone = paged_attention(
            q[i : i + 1],
            keys,
            values,
            table[i : i + 1, :width].contiguous(),
            lengths[i : i + 1],
            SCALE,
            UNIT,
            32,
        )
        assert torch.equal(alone[0], every[i])


@needs_triton
def test_a_chunk_in_two_pieces_is_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a tile holds, causal over what stands before them; q a slice of a fused projection."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    q, keys, values = _draw(15)
    q = torch.cat([q, q], 1)[:, :10]
    assert not q.is_contiguous()
    table, visible = _ints([[5, 2, 8]]), _ints(range(26, 41))
    whole = paged_rows_attention(q, keys, values, table, visible, RowGroups.runs([15]), SCALE, UNIT)
    for part in (slice(0, 4), slice(4, 15)):
        count = len(range(15)[part])
        piece = paged_rows_attention(
            q[part], keys, values, table, visible[part].contiguous(), RowGroups.runs([count]), SCALE, UNIT
        )
        torch.testing.assert_close(piece, whole[part], rtol=1e-5, atol=1e-6)
    each = paged_attention_reference(q, keys, values, table.expand(15, 3), visible, SCALE, UNIT)
    torch.testing.assert_close(whole, each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [pytest.param("triton", marks=needs_triton), "reference"])
def test_slots_that_nobody_sees_are_not_read(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", way)
    q, keys, values = _draw(2)
    table, lengths = _ints([[5, 2], [8, 0]]), _ints([19, 0])
    before = paged_attention(q, keys, values, table, lengths, SCALE, UNIT, 16)
    seen = torch.zeros(PAGES * UNIT, dtype=torch.bool, device=DEVICE)
    seen[80:96] = seen[32:35] = True
    keys[:, ~seen], values[:, ~seen] = float("nan"), float("nan")
    after = paged_attention(q, keys, values, table, lengths, SCALE, UNIT, 16)
    assert torch.equal(before, after)
    assert not after[1].any() and after[0].isfinite().all()


@pytest.mark.parametrize("way", [pytest.param("triton", marks=needs_triton), "reference"])
@pytest.mark.parametrize("split", [16, 64], ids=["in parts", "whole"])
def test_nan_shows_in_its_row_alone(way: str, split: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a query, and of a key that overflowed in one part of a row."""
    monkeypatch.setenv("PROACTOR_KERNELS", way)
    q, keys, values = _draw(3)
    q[0, 4, 3], keys[:, 8 * UNIT, 0] = float("nan"), float("inf")
    table, lengths = _ints([[5, 2, 3], [8, 9, 4], [11, 7, 6]]), _ints([40, 40, 40])
    out = paged_attention(q, keys, values, table, lengths, SCALE, UNIT, split).view(q.shape)
    assert out[0, 4].isnan().all() and out[0, :4].isfinite().all() and out[2].isfinite().all()
    overflowed = q[1, :, 0] > 0  # the others weigh that key with exp(-inf)
    assert overflowed.any() and out[1, overflowed].isnan().all() and out[1, ~overflowed].isfinite().all()


@needs_triton
def test_other_types_and_wide_heads_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    table, lengths = _ints([[5, 2], [8, 0]]), _ints([19, 3])
    for draw in (_draw(2), _draw(2, dim=136)):
        q, keys, values = (x.double() if draw[0].shape[2] == 16 else x for x in draw)
        ours = paged_attention(q, keys, values, table, lengths, SCALE, UNIT)
        assert torch.equal(ours, paged_attention_reference(q, keys, values, table, lengths, SCALE, UNIT))


def test_a_family_is_read_in_as_few_tiles_as_it_fills() -> None:
    """20 members at 12 rows a tile: two readings of the prefix, not 20; empty families take none."""
    groups = RowGroups.of([list(range(20)), [], [21, 20]])
    tiles, rows = groups.tiles(12, torch.device("cpu"))
    assert tiles.tolist() == [[0, 0, 12], [0, 12, 20], [2, 20, 22]]
    assert rows.tolist() == [*range(20), 21, 20]
    assert groups.owner().tolist() == [0] * 20 + [2, 2]
    assert groups.lists() == [list(range(20)), [], [21, 20]]


def test_bad_groups_are_named() -> None:
    for groups in ([[0, 1], [1]], [[0], [2]]):
        with pytest.raises(KernelError, match=r"^groups: "):
            RowGroups.of(groups)
    with pytest.raises(KernelError, match=r"^counts: "):
        RowGroups.runs([2, -1])


def _arguments() -> dict[str, Any]:
    q, keys, values = _draw(2)
    table = {"table": _ints([[5, 2], [8, 0]]), "lengths": _ints([19, 3])}
    return {"q": q, "keys": keys, "values": values, **table, "scale": SCALE, "unit": UNIT}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q", torch.zeros(2, 160)),
        ("keys", torch.zeros(3, PAGES * UNIT, 16)),
        ("keys", torch.zeros(2, PAGES * UNIT, 8)),
        ("values", torch.zeros(2, UNIT, 16)),
        ("values", torch.zeros(2, PAGES * UNIT, 16, dtype=torch.float64)),
        ("values", torch.zeros(2, 16, PAGES * UNIT).transpose(1, 2)),
        ("table", torch.zeros(2, 2, dtype=torch.int64)),
        ("table", torch.zeros(3, 2, dtype=torch.int32)),
        ("lengths", torch.zeros(2)),
        ("lengths", torch.zeros(3, dtype=torch.int32)),
        ("unit", 7),
        ("split", 0),
    ],
)
def test_bad_arguments_are_named(name: str, value: Any) -> None:
    value = value.to(DEVICE) if isinstance(value, Tensor) else value
    with pytest.raises(KernelError, match=f"^{name}: "):
        paged_attention(**(_arguments() | {name: value}))


def test_bad_families_and_sequences_are_named() -> None:
    good = _arguments()
    prefix = {"prefix_table": _ints([[7]]), "prefix_lengths": _ints([16])}
    with pytest.raises(KernelError, match=r"^families: "):
        shared_prefix_attention(**good, **prefix, families=RowGroups.runs([3]))
    with pytest.raises(KernelError, match=r"^prefix_table: "):
        shared_prefix_attention(**good, **prefix, families=RowGroups.runs([1, 1]))
    rows = {k: v for k, v in good.items() if k != "lengths"}
    with pytest.raises(KernelError, match=r"^sequences: "):
        paged_rows_attention(**rows, visible=_ints([1, 2]), sequences=RowGroups.runs([1, 2]))
    with pytest.raises(KernelError, match=r"^visible: "):
        paged_rows_attention(**rows, visible=_ints([1, 2, 3]), sequences=RowGroups.runs([1, 1]))
