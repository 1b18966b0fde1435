"""Block tables as the GPU kernels read them: what grows in place equals what is built anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proactor.engine.tables import WIDTH, DecodeTables

CPU = torch.device("cpu")
SIZE = 16


def decode(request: int, table: list[int], shared: int, length: int) -> Any:
    return SimpleNamespace(
        request=SimpleNamespace(id=request),
        block_table=table,
        shared_pages=shared,
        length=length,
        input_id=length + 1,
        family=(request, table[shared - 1] if shared else -1),
    )


@pytest.mark.parametrize("pages", [1, WIDTH + 2])
def test_advancing_equals_building_anew(pages: int) -> None:
    """Three sequences, two behind two shared pages of one request; step by step, past the planned width."""
    decodes = [decode(7, [1, 2, 10], 2, 33), decode(3, [5], 0, 9), decode(7, [1, 2, 11], 2, 40)]
    kept = DecodeTables(decodes, SIZE, CPU)
    ids = kept.ids
    for step in range(SIZE * pages):
        full = [i for i, d in enumerate(decodes) if d.length > SIZE * len(d.block_table)]
        for i in full:
            decodes[i].block_table.append(100 + 3 * step + i)
        kept.grow(full)
        positions, slots = kept.refresh()
        fresh = DecodeTables(decodes, SIZE, CPU)
        fresh.refresh()
        assert positions.tolist() == [d.length - 1 for d in decodes]
        for i, d in enumerate(decodes):
            own = len(d.block_table) - d.shared_pages
            assert (
                kept.own[i, :own].tolist() == fresh.own[i, :own].tolist() == d.block_table[d.shared_pages :]
            )
            assert slots[i] == d.block_table[(d.length - 1) // SIZE] * SIZE + (d.length - 1) % SIZE
        for tables in (kept, fresh):
            assert tables.ids.tolist() == [d.input_id for d in decodes]
            assert (tables.positions.tolist(), tables.slots.tolist()) == (positions.tolist(), slots.tolist())
            assert tables.lengths.tolist() == [d.length - SIZE * d.shared_pages for d in decodes]
        for d in decodes:
            d.length += 1
            d.input_id += 7
    assert kept.ids is ids, "the step's rows stay where they are"
    assert kept.own.shape[1] % WIDTH == 0 and kept.prefix.shape == (2, WIDTH)
    assert kept.families.lists() == [[0, 2], [1]] and kept.prefix_lengths.tolist() == [32, 0]


def test_a_step_that_was_left_out_is_noticed() -> None:
    decodes = [decode(1, [4], 0, 3)]
    kept = DecodeTables(decodes, SIZE, CPU)
    kept.refresh()
    decodes[0].length += 2
    with pytest.raises(AssertionError, match="a step was left out"):
        kept.refresh()


def test_no_prefix_has_no_columns() -> None:
    assert DecodeTables([decode(1, [4], 0, 3)], 16, CPU).prefix.shape == (1, 0)
