"""Token trees: prompts merge, sampled tokens never do, rows are distinct, and packing keeps its budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import EngineError, Group, Sample
from proactor.engine.layout import layout
from proactor.engine.packing import pack
from proactor.engine.tree import ROOT, Tree
from tests.engine.trees import groups, path


def prefixes(prompts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(p[: i + 1]) for p in prompts for i in range(len(p))}


@settings(deadline=None, max_examples=50)
@given(groups())
def test_paths_spell_prompts_and_samples(several: list[Group]) -> None:
    tree = Tree(several)
    extended = {id(g.parent) for g in several}
    for group, end, leaves in zip(tree.groups, tree.prompt_end, tree.leaves, strict=True):
        assert path(tree, end) == group.prompt_ids
        for sample, leaf in zip(group.samples, leaves, strict=True):
            kept = sample.token_ids if id(sample) in extended else sample.token_ids[:-1]
            assert path(tree, end if leaf is None else leaf) == group.prompt_ids + kept


@settings(deadline=None, max_examples=50)
@given(groups(parents=False))
def test_rows_are_the_distinct_prompt_prefixes_and_every_sampled_token(several: list[Group]) -> None:
    """Prompts share all they can; sampled tokens, even equal, nothing. A sample's last token has no row."""
    sampled = [len(s.token_ids) - 1 for g in several for s in g.samples]
    tree = Tree(several)
    assert tree.rows == len(prefixes([g.prompt_ids for g in several])) + sum(sampled)
    assert tree.flat_tokens == sum(len(g.prompt_ids) * len(g.samples) for g in several) + sum(sampled)


@settings(deadline=None, max_examples=50)
@given(groups())
def test_no_two_samples_share_a_leaf(several: list[Group]) -> None:
    tree = Tree(several)
    leaves = [leaf for row in tree.leaves for leaf in row if leaf is not None]
    assert len(leaves) == len(set(leaves))
    assert all(tree.nodes[i].leaf for i in leaves) and not set(leaves) & set(tree.prompt_end) - extended_ends(
        tree
    )


def extended_ends(tree: Tree) -> set[int]:
    """Leaves at whose very end another group's prompt ends."""
    return {tree._leaf_of[id(g.parent)] for g in tree.groups if g.parent is not None}


@settings(deadline=None, max_examples=50)
@given(groups())
def test_order_names_each_node_once_after_its_parent(several: list[Group]) -> None:
    tree = Tree(several)
    order = tree.order()
    assert sorted(order) == list(range(len(tree.nodes)))
    place = {node: i for i, node in enumerate(order)}
    assert all(n.parent == ROOT or place[n.parent] < place[i] for i, n in enumerate(tree.nodes))
    assert all(len(n.ids) for n in tree.nodes)


@settings(deadline=None, max_examples=50)
@given(groups())
def test_layout_predicts_each_trained_token_from_its_own_context(several: list[Group]) -> None:
    tree = Tree(several)
    flat = layout(tree)
    context: dict[int, list[int]] = {}
    for node, start in flat.start.items():
        above = path(tree, tree.nodes[node].parent)
        for i, token in enumerate(tree.nodes[node].ids.tolist()):
            context[start + i] = [*above, *tree.nodes[node].ids[: i + 1].tolist()]
            assert int(flat.ids[start + i]) == token
            assert int(flat.positions[start + i]) == len(context[start + i]) - 1
    assert sorted(context) == list(range(tree.rows)) and len(flat.ids) == tree.rows
    rows = flat.head_row[flat.pair_row[flat.unsort]].tolist()
    temperatures = flat.head_temperature[flat.pair_row[flat.unsort]].tolist()
    wanted = [(s, i) for g in several for s in g.samples for i, on in enumerate(s.trained_mask()) if on]
    assert len(rows) == len(wanted) == len(flat.batch.target)
    for j, (sample, i) in enumerate(wanted):
        assert context[rows[j]] == sample.prompt_ids + sample.token_ids[:i]
        assert int(flat.batch.target[j]) == sample.token_ids[i]
        assert int(flat.pair_target[flat.unsort[j]]) == sample.token_ids[i]
        assert flat.batch.samples[int(flat.batch.sample[j])] is sample and int(flat.batch.position[j]) == i
        assert temperatures[j] == pytest.approx(sample.temperature)
    ascending = flat.pair_row.tolist()
    assert ascending == sorted(ascending)


@settings(deadline=None, max_examples=50)
@given(groups(parents=False), st.integers(1, 40))
def test_packing(several: list[Group], budget: int) -> None:
    """Every group once; only a lone group may exceed the budget; a key's groups share a tree if they fit."""
    trees = pack(several, budget)
    placed = [id(g) for t in trees for g in t.groups]
    assert sorted(placed) == sorted(id(g) for g in several)
    assert all(t.rows <= budget or len(t.groups) == 1 for t in trees)
    for key in ("a", "b"):
        unit = [g for g in several if g.tree == key]
        if unit and Tree(unit).rows <= budget:
            assert sum(any(g.tree == key for g in t.groups) for t in trees) == 1
    assert sum(t.rows for t in trees) <= sum(t.rows for t in pack(several, budget, together=False))


@settings(deadline=None, max_examples=50)
@given(groups(parents=False), st.integers(1, 40))
def test_packing_apart_does_not_see_what_stands_beside(several: list[Group], budget: int) -> None:
    """Deterministic mode: a key's trees are the same alone as among others."""
    together = [[id(g) for g in t.groups] for t in pack(several, budget, together=False)]
    for key in ("a", "b"):
        unit = [g for g in several if g.tree == key]
        alone = [[id(g) for g in t.groups] for t in pack(unit, budget, together=False)]
        assert [t for t in together if t[0] in {id(g) for g in unit}] == alone


def test_a_group_above_the_budget_stands_alone() -> None:
    big = Group([1] * 50, [Sample([1] * 50, [2, 3])])
    small = [Group([5, i], [Sample([5, i], [1, 2])]) for i in range(4)]
    trees = pack([*small, big], 12)
    assert sorted(t.rows for t in trees)[-1] == 51 and all(t.rows <= 12 for t in trees if big not in t.groups)
    assert len(trees) == 2


def test_a_caterpillar_counts_its_trunk_once() -> None:
    trunk = list(range(100))
    several = [Group(trunk[:u], [Sample(trunk[:u], [7, 7, 7]) for _ in range(4)]) for u in (20, 50, 51, 100)]
    tree = Tree(several)
    assert tree.rows == 100 + 4 * 4 * 2
    assert tree.flat_tokens == 4 * (20 + 50 + 51 + 100) + 4 * 4 * 2


def test_samples_that_begin_like_a_longer_prompt_stay_apart() -> None:
    """A logged answer in the trunk and the same tokens sampled at its branch point are different rows."""
    trunk = Group([1, 2, 3, 4, 5], [Sample([1, 2, 3, 4, 5], [6, 7])])
    branch = Group([1, 2], [Sample([1, 2], [3, 4, 5])])
    assert Tree([branch, trunk]).rows == Tree([trunk, branch]).rows == 5 + 1 + 2


@pytest.mark.parametrize(
    "several,message",
    [
        ([Group([], [Sample([], [1])])], "at least one token"),
        ([Group([1], [Sample([1], [])])], "at least one token"),
        ([Group([1, 2], [Sample([1, 2], [1])], parent=Sample([1], [2]))], "earlier in the tree"),
    ],
)
def test_refusals(several: list[Group], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Tree(several)


def test_recorded_log_probabilities_must_match_the_tokens() -> None:
    sample = Sample([1], [2, 3], logprobs=[-0.1, -0.2], policy_logprobs=[-0.1])
    with pytest.raises(EngineError, match="1 log-probabilities for 2 tokens"):
        layout(Tree([Group([1], [sample])]))


def test_versions_must_match_the_tokens() -> None:
    with pytest.raises(EngineError, match="1 versions for 2 tokens"):
        layout(Tree([Group([1], [Sample([1], [2, 3], versions=[1])])]))


def test_columns_follow_masks_and_advantages() -> None:
    sample = Sample(
        [1], [2, 3, 4, 5], [-1.0, 0.0, -3.0, -4.0], [-1.5, 0.0, -3.5, -4.5], advantage=[2.0, -1.0]
    )
    sample.mask, sample.versions = [True, False, True, True], [3, 3, 4, 4]
    bare = Sample([1], [9], advantage=0.5)
    batch = layout(Tree([Group([1], [sample, bare])])).batch
    assert batch.target.tolist() == [2, 4, 5, 9]
    assert batch.advantage.tolist() == [2.0, -1.0, -1.0, 0.5]
    assert batch.old[:3].tolist() == [-1.5, -3.5, -4.5] and batch.sampled[:3].tolist() == [-1.0, -3.0, -4.0]
    assert np.isnan(batch.old[3].item()) and np.isnan(batch.sampled[3].item())
    assert batch.version.tolist() == [3, 4, 4, 0]
    assert batch.position.tolist() == [0, 2, 3, 0] and batch.sample.tolist() == [0, 0, 0, 1]
