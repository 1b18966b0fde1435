"""Groups above what a pass can hold: split by samples, nothing lost, and one sum of gradients."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import EngineError, Group, Sample
from proactor.engine.packing import pack, refuse_long
from proactor.engine.types import with_parents
from tests.engine.trees import groups


def trained(several: list[Group]) -> Counter[tuple[object, ...]]:
    """Each sample that has a trained token, with the tokens that it is conditioned on."""
    return Counter(
        (id(s), tuple(g.prompt_ids), tuple(s.token_ids))
        for g in several
        for s in g.samples
        if any(s.trained_mask())
    )


@settings(deadline=None, max_examples=100)
@given(groups(), st.integers(1, 30), st.integers(0, 30))
def test_no_tree_exceeds_what_fits_and_every_trained_sample_is_in_one(
    several: list[Group], budget: int, more: int
) -> None:
    longest = max(len(g.prompt_ids) + len(s.token_ids) - 1 for g in several for s in g.samples)
    budget, most = min(budget, longest + more), longest + more
    refuse_long(several, most)
    kept = with_parents(several, lambda g: not g.masked)
    trees = pack(kept, budget, fits=lambda tree: tree.rows <= most)
    assert all(0 < tree.rows <= most for tree in trees)
    assert all(any(not g.masked for g in tree.groups) for tree in trees)
    assert trained([g for tree in trees for g in tree.groups]) == trained(kept)


@settings(deadline=None, max_examples=50)
@given(groups(), st.integers(1, 30))
def test_a_limit_that_is_never_met_changes_nothing(several: list[Group], budget: int) -> None:
    names = [
        [[id(g) for g in tree.groups] for tree in pack(several, budget, fits=f)]
        for f in (lambda t: True, lambda t: t.rows <= 10**6)
    ]
    assert names[0] == names[1]


def test_a_long_sample_is_refused_by_name() -> None:
    several = [
        Group([1] * 9, [Sample([1] * 9, [2] * 3)]),
        Group([1] * 9, [Sample([1] * 9, [2]), Sample([1] * 9, [2] * 5)]),
    ]
    refuse_long(several, None)
    refuse_long(several, 13)
    with pytest.raises(
        EngineError, match=r"^group 1, sample 1: 13 tokens with its prompt, .* memory for 12 in"
    ):
        refuse_long(several, 12)
    several[1].samples[1].mask = [False] * 5  # never computed
    refuse_long(several, 12)
