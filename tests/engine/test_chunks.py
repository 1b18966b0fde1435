"""Chunks cover a tree once, within the limit, and keep just what later chunks see."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import Group, Sample
from proactor.engine.chunks import Chunk, cut, kept_alone
from proactor.engine.layout import layout
from proactor.engine.segments import Segment
from proactor.engine.tree import ROOT, Tree
from tests.engine.test_blocks import expected
from tests.engine.trees import groups, long_tokens


def seen_by_key(segments: list[Segment]) -> dict[int, list[int]]:
    """Keys that each key's row sees, in order, by the segments' definition."""
    path: list[list[int]] = []
    out = {}
    for start, length, parent in segments:
        above = path[parent] if parent != ROOT else []
        mine = list(range(start, start + length))
        out |= {key: above + mine[: i + 1] for i, key in enumerate(mine)}
        path.append(above + mine)
    return out


def rows_seen(chunks: list[Chunk]) -> dict[int, list[int]]:
    """Rows of the tree that each row sees, where kept rows of earlier chunks are the first keys."""
    store: list[int] = []
    out: dict[int, list[int]] = {}
    for chunk in chunks:
        assert chunk.before == len(store)
        keys = [*store, *chunk.rows.tolist()]
        seen = seen_by_key(chunk.segments)
        assert sorted(seen) == list(range(len(keys)))
        for i, row in enumerate(chunk.rows.tolist()):
            assert row not in out, f"row {row} stands in two chunks"
            out[row] = [keys[k] for k in seen[chunk.before + i]]
        store += chunk.rows[chunk.keep].tolist()
    return out


@settings(deadline=None, max_examples=150)
@given(groups(long_tokens), st.integers(1, 60))
def test_chunks_show_each_row_its_ancestors(several: list[Group], most: int) -> None:
    tree = Tree(several)
    start = layout(tree).start
    chunks = cut(tree, start, most)
    assert all(0 < len(c.rows) <= most for c in chunks)
    assert rows_seen(chunks) == expected(tree, start)
    needed = {row for c in chunks for k in range(c.before) for row in [kept_rows(chunks)[k]] if sees(c, k)}
    assert set(kept_rows(chunks)) == needed, "what is kept is what a later chunk sees"


def kept_rows(chunks: list[Chunk]) -> list[int]:
    return [row for c in chunks for row in c.rows[c.keep].tolist()]


def sees(chunk: Chunk, key: int) -> bool:
    seen = seen_by_key(chunk.segments)
    return any(key in seen[chunk.before + i] for i in range(len(chunk.rows)))


@settings(deadline=None, max_examples=100)
@given(groups(long_tokens), st.integers(1, 60))
def test_kept_rows_see_the_same_alone(several: list[Group], most: int) -> None:
    tree = Tree(several)
    start = layout(tree).start
    chunks = cut(tree, start, most)
    alone = kept_alone(chunks)
    assert [row for c in alone for row in c.rows.tolist()] == kept_rows(chunks)
    wanted = expected(tree, start)
    assert rows_seen(alone) == {row: wanted[row] for row in kept_rows(chunks)}
    assert all(c.keep.tolist() == list(range(len(c.rows))) for c in alone)


def test_a_dialogue_falls_apart_into_turns() -> None:
    """Each chunk holds a turn of the trunk and its samples; only the trunk is kept, the last turn's not."""
    trunk = list(range(300))
    turns = range(60, 301, 60)
    tree = Tree([Group(trunk[:u], [Sample(trunk[:u], [1] * 21) for _ in range(4)], tree=1) for u in turns])
    chunks = cut(tree, layout(tree).start, 60 + 4 * 20)
    assert [len(c.rows) for c in chunks] == [140] * 5
    assert [len(c.keep) for c in chunks] == [60, 60, 60, 60, 0]
    assert [c.before for c in chunks] == [0, 60, 120, 180, 240]
    assert all(np.array_equal(c.keep, np.arange(60)) for c in chunks[:-1])


def test_a_long_prompt_is_cut_and_its_parts_follow_one_another() -> None:
    tree = Tree([Group(list(range(1000)), [Sample(list(range(1000)), [1, 2, 3])])])
    chunks = cut(tree, layout(tree).start, 256)
    assert [len(c.rows) for c in chunks] == [256, 256, 256, 232 + 2]
    assert all(a.before + len(a.keep) == b.before for a, b in pairwise(chunks))
