"""Attention blocks show each row its ancestors and itself only, chunked, stacked or padded as may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proactor.engine import Group, Sample, blocks
from proactor.engine.blocks import Family, Member, chunk_families, segment_families, stack
from proactor.engine.layout import layout
from proactor.engine.segments import tree_segments
from proactor.engine.tree import Tree
from proactor.kernels.attention_block import AttentionBlock
from tests.engine.trees import ancestors, groups, long_tokens


def seen_by_row(stacked: list[AttentionBlock], unit: int = 1) -> dict[int, list[int]]:
    """Key slots that each query row sees, in order, by the blocks' definition; fails on a repeated row."""
    out: dict[int, list[int]] = {}
    for block in stacked:
        families, members, length = block.rows.shape
        keep = set(range(block.rows.numel())) if block.valid is None else set(block.valid.tolist())
        context, own = slots(block.context, unit), slots(block.own, unit)
        for flat, (f, n, q) in enumerate(np.ndindex(families, members, length)):
            if flat not in keep:
                continue
            row = int(block.rows[f, n, q])
            assert row not in out, f"row {row} stands twice"
            far, near = context[f], own[f, n]
            if block.context_hidden is not None:
                far = far[~block.context_hidden[f]]
            if block.own_hidden is not None:
                near = near[~block.own_hidden[f, n, q]]
            if block.causal:
                assert near.tolist() == own[f, n][: q + 1].tolist()
            out[row] = [*far.tolist(), *near.tolist()]
    return out


def slots(index: Tensor, unit: int) -> Tensor:
    return (index.unsqueeze(-1) * unit + torch.arange(unit)).flatten(-2)


def expected(tree: Tree, start: dict[int, int]) -> dict[int, list[int]]:
    """Rows on the path from the root to each row, itself last."""
    out = {}
    for i, node in enumerate(tree.nodes):
        above = [r for a in reversed(list(ancestors(tree, node.parent))) for r in rows_of(tree, start, a)]
        mine = rows_of(tree, start, i)
        for j, row in enumerate(mine):
            out[row] = above + mine[: j + 1]
    return out


def rows_of(tree: Tree, start: dict[int, int], node: int) -> list[int]:
    return list(range(start[node], start[node] + len(tree.nodes[node].ids)))


CHUNKS = [(3, 0), (3, 10**9), (256, 0), (256, blocks.OVERHEAD), (8, 200)]


@pytest.mark.parametrize("chunk,overhead", CHUNKS)
def test_visibility_is_ancestry(chunk: int, overhead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``overhead`` 0 stacks almost nothing, a huge one pads everything into one block."""
    monkeypatch.setattr(blocks, "CHUNK", chunk)
    monkeypatch.setattr(blocks, "OVERHEAD", overhead)

    @settings(deadline=None, max_examples=20)
    @given(groups(long_tokens))
    def check(several: list[Group]) -> None:
        tree = Tree(several)
        start = layout(tree).start
        made = stack(segment_families(tree_segments(tree, start)))
        assert seen_by_row(made) == expected(tree, start)
        if overhead >= 10**9:
            assert len(made) == 1

    check()


def test_a_long_dialogue_makes_few_blocks() -> None:
    """A real shape: 8 turns on a trunk of 600 tokens, 8 samples of 32."""
    trunk = list(range(600))
    tree_groups = [
        Group(trunk[:u], [Sample(trunk[:u], [1] * 32) for _ in range(8)]) for u in range(100, 601, 70)
    ]
    tree = Tree(tree_groups)
    start = layout(tree).start
    made = stack(segment_families(tree_segments(tree, start)))
    assert seen_by_row(made) == expected(tree, start)
    assert len(made) <= 11  # a turn each, and three of the trunk


def test_a_trunk_is_one_run() -> None:
    """Twelve turns of 20 tokens, two answers of 30 each: the trunk is one run, and answers go in pairs."""
    trunk = list(range(240))
    tree_groups = [
        Group(trunk[:u], [Sample(trunk[:u], [900 + i] * 30) for i in range(2)]) for u in range(20, 241, 20)
    ]
    tree = Tree(tree_groups)
    start = layout(tree).start
    families = segment_families(tree_segments(tree, start))
    assert seen_by_row(stack(families)) == expected(tree, start)
    shapes = sorted(family.shape[:2] for family in families)
    assert shapes == [
        (1, 13),
        (1, 29),
        (1, 256),
        *[(2, 29)] * 11,
    ]  # the last turn's first answer goes on from it


def test_answers_of_very_different_context_are_not_padded_to_one() -> None:
    """Pairs of padded blocks stay within a fifth of those that rows see, and an overhead a block."""
    tree_groups = [
        Group(list(range(u)), [Sample(list(range(u)), [2000] * 30)]) for u in range(100, 1501, 100)
    ]
    tree = Tree(tree_groups)
    start = layout(tree).start
    made = stack(segment_families(tree_segments(tree, start)))
    answers = [block for block in made if block.rows.shape[2] <= 30]
    padded = sum(b.rows.numel() * (b.context.shape[1] + b.own.shape[2]) for b in answers)
    seen = sum(30 * (u + 30) for u in range(100, 1501, 100))
    assert padded <= 1.2 * seen


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 5), st.integers(0, 30), st.integers(1, 30))
def test_prompt_chunks_see_the_pages_before_them(
    data: st.DataObject, unit: int, start: int, count: int
) -> None:
    """Rows of a chunk see slots 0 … their position in page order; what nobody sees is hidden."""
    pages = -(-(start + count) // unit)
    table = data.draw(st.permutations(range(pages + 3)))[:pages]
    rows = np.arange(7, 7 + count)
    whole = slots(torch.tensor(table), unit).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK", data.draw(st.sampled_from([4, 256])))
        patch.setattr(blocks, "OVERHEAD", data.draw(st.sampled_from([0, 10**9])))
        made = stack(chunk_families(list(table), unit, start, rows), unit)
    assert seen_by_row(made, unit) == {7 + i: whole[: start + i + 1] for i in range(count)}


@settings(deadline=None, max_examples=50)
@given(st.data(), st.sampled_from([1, 2, 4]))
def test_stacking_keeps_each_member_to_itself(data: st.DataObject, unit: int) -> None:
    """Families as decoding makes them: any contexts, any numbers of siblings and pages."""
    shapes = data.draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
            min_size=1,
            max_size=4,
        )
    )
    families, wanted, row, page = [], {}, 0, 0
    for context, lengths in shapes:
        shared = np.arange(page, page + context)
        page += context
        members = []
        for length in lengths:
            own = np.arange(page, page + -(-length // unit))
            page += len(own)
            members.append(Member(np.asarray([row]), own, length - 1))
            wanted[row] = (
                slots(torch.from_numpy(shared), unit).tolist()
                + slots(torch.from_numpy(own), unit).tolist()[:length]
            )
            row += 1
        families.append(Family(shared, members))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "OVERHEAD", data.draw(st.sampled_from([0, 10**9])))
        made = stack(families, unit)
    assert seen_by_row(made, unit) == wanted
