"""Block tables as the GPU kernels read them: what grows in place equals what is built anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proactor.engine.tables import WIDTH, DecodeTables

CPU = torch.device("cpu")


def decode(request: int, table: list[int], shared: int, length: int) -> Any:
    return SimpleNamespace(
        request=SimpleNamespace(id=request),
        block_table=table,
        shared_pages=shared,
        length=length,
        input_id=length + 1,
    )


@pytest.mark.parametrize("pages", [1, WIDTH - 1, WIDTH + 3])
def test_growing_equals_building_anew(pages: int) -> None:
    """Three sequences, two behind two shared pages of one request; a page a round, past the planned width."""
    decodes = [decode(7, [1, 2, 10], 2, 33), decode(3, [5], 0, 9), decode(7, [1, 2, 11], 2, 40)]
    kept = DecodeTables(decodes, 16, CPU)
    for new in range(pages):
        grown = [new % 3, (new + 1) % 3]
        for i in grown:
            decodes[i].block_table.append(100 + 3 * new + i)
            decodes[i].length += 16
        kept.grow(grown)
        kept.refresh()
    fresh = DecodeTables(decodes, 16, CPU)
    positions, slots = fresh.refresh()
    for i, d in enumerate(decodes):
        own = len(d.block_table) - d.shared_pages
        assert kept.own[i, :own].tolist() == fresh.own[i, :own].tolist() == d.block_table[d.shared_pages :]
        assert slots[i] == d.block_table[(d.length - 1) // 16] * 16 + (d.length - 1) % 16
    assert kept.own.shape[1] % WIDTH == 0 and kept.prefix.shape == (2, WIDTH)
    assert (
        kept.lengths.tolist() == fresh.lengths.tolist() == [d.length - 16 * d.shared_pages for d in decodes]
    )
    assert positions.tolist() == [d.length - 1 for d in decodes]
    for tables in (kept, fresh):
        assert tables.ids.tolist() == [d.input_id for d in decodes]
        assert (tables.positions.tolist(), tables.slots.tolist()) == (positions.tolist(), slots.tolist())
    assert kept.families.lists() == [[0, 2], [1]] and kept.prefix_lengths.tolist() == [32, 0]


def test_no_prefix_has_no_columns() -> None:
    assert DecodeTables([decode(1, [4], 0, 3)], 16, CPU).prefix.shape == (1, 0)
