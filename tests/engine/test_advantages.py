"""Overlong shaping, advantages over the whole step, and the credit of a span that others continue."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import GRPO, EngineError, Group, GRPOLoss, Overlong, Sample
from proactor.engine.advantages import overlong_penalty
from proactor.engine.parallel import Parallel
from proactor.engine.trainer import Tally
from proactor.engine.update import deal, means, prepare, statistics
from tests.engine.engines import gradient, load, outside

LONE = Parallel(torch.device("cpu"))


def group(*rewards: float, tokens: int = 4, **changes: object) -> Group:
    samples = [Sample([1, 2], [3] * (tokens + i), reward=r) for i, r in enumerate(rewards)]
    return Group([1, 2], samples, **changes)  # type: ignore[arg-type]


def found(groups: list[Group], config: GRPO) -> list[list[float]]:
    prepare(groups, config)
    return [[float(s.advantage) for s in g.samples] for g in groups]  # type: ignore[arg-type]


# -- overlong reward shaping ---


def test_the_soft_punishment_is_the_papers() -> None:
    """0 up to limit - cache, then a line down to -1 at the limit (equation 13)."""
    shape = Overlong(limit=20, cache=5)
    lengths = {1: 0.0, 15: 0.0, 16: -0.2, 18: -0.6, 20: -1.0, 21: -1.0, 500: -1.0}
    assert {n: overlong_penalty(n, shape) for n in lengths} == pytest.approx(lengths)
    assert overlong_penalty(18, Overlong(limit=20, cache=5, penalty=0.5)) == pytest.approx(-0.3)
    with pytest.raises(EngineError, match=r"^Overlong: cache=21 is above limit=20$"):
        Overlong(limit=20, cache=21)


def test_long_samples_lose_reward_and_are_counted() -> None:
    """Lengths 4, 5 and 6 of which the last counts 5 trained tokens."""
    config = GRPO(advantages="mean", overlong=Overlong(limit=6, cache=2))
    groups = [group(1.0, 1.0, 1.0)]
    groups[0].samples[2].mask = [True, False, True, True, True, True]
    _, sums = prepare(groups, config)
    shaped = np.array([1.0, 0.5, 0.5])
    assert found(groups, config)[0] == pytest.approx(list(shaped - shaped.mean()))
    assert groups[0].rewards == [1.0, 1.0, 1.0], "the reward itself stays"
    assert sums["overlong"] == 2
    tally = Tally()
    tally.add(sums)
    row = means(statistics(tally), 1.0)
    assert row["overlong_share"] == pytest.approx(2 / 3) and row["reward_mean"] == 1.0


# -- over the whole step ---


def by_numpy(rewards: list[list[float]], baseline: bool) -> list[list[float]]:
    rows = [np.array(r) - (np.mean(r) if baseline else 0.0) for r in rewards]
    flat = np.concatenate(rows)
    return [list((r - flat.mean()) / (flat.std() + 1e-6)) for r in rows]


@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_compares_over_the_step(baseline: bool) -> None:
    rewards = [[0.0, 1.0, 5.0], [2.0, 2.0], [-1.0, 0.25]]
    config = GRPO(advantages="reinforce_baseline" if baseline else "reinforce")
    mine = found([group(*r) for r in rewards], config)
    for ours, theirs in zip(mine, by_numpy(rewards, baseline), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    assert (mine[1] == [0.0, 0.0]) == baseline, "without a baseline a flat group is compared with the others"
    assert found([group(0.1, 0.1), group(0.1, 0.1, 0.1)], config) == [[0.0] * 2, [0.0] * 3]
    own = group(0.0, 1.0)
    own.samples[0].advantage = 7.0
    assert found([own, group(3.0, 3.0)], config)[0][0] == 7.0


@pytest.mark.parametrize("advantages", ["reinforce", "reinforce_baseline"])
@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=3), min_size=1, max_size=6), st.randoms())
def test_the_order_of_groups_changes_no_bit(
    advantages: str, rewards: list[list[float]], random: object
) -> None:
    config = GRPO(advantages=advantages)  # type: ignore[arg-type]
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain = found([group(*r) for r in rewards], config)
    shuffled = found([group(*rewards[i]) for i in order], config)
    assert shuffled == [plain[i] for i in order]
    total = math.fsum(a for row in plain for a in row)
    assert abs(total) < 1e-6


# -- groups that are left out ---


def test_a_flat_group_is_computed_where_kl_or_entropy_give_it_a_gradient(folder: Path) -> None:
    flat, live = group(1.0, 1.0), group(0.0, 1.0)
    for config, kept in (
        (GRPO(), [live]),
        (GRPO(beta=0.1), [flat, live]),
        (GRPO(entropy_bonus=0.1), [flat, live]),
    ):
        groups, _ = prepare([flat, live], config)
        assert deal(groups, config, LONE)[0][0] == kept
    engine = load(folder)
    stats = engine.train([flat], GRPO(entropy_bonus=0.1))
    assert stats["zero_gradient"] == 0 and stats["grad_norm"] > 0 and stats["loss"] < 0


# -- a sampled span that others continue ---


def branched() -> tuple[list[Group], Sample]:
    """A span continued by 2 samples of a group and, after one of those, by 3 of another."""
    root = outside([1], [2, 3])
    first = Group([1], [root, outside([1], [4], reward=9.0)], tree=0)
    middle = [outside([1, 2, 3], [5, 6]), outside([1, 2, 3], [7], reward=1.0)]
    prompt = [1, 2, 3, 5, 6]
    ends = [outside(prompt, [8 + i], reward=float(r)) for i, r in enumerate((0, 3, 9))]
    groups = [
        first,
        Group([1, 2, 3], middle, tree=0, parent=root),
        Group(prompt, ends, tree=0, parent=middle[0]),
    ]
    return groups, root


@pytest.mark.parametrize("credit", ["sum", "mean"])
def test_a_span_gets_the_sum_or_the_mean_of_its_branches(credit: str) -> None:
    groups, root = branched()
    prepare(groups, GRPO(advantages="mean", branch_credit=credit))  # type: ignore[arg-type]
    ends = [-4.0, -1.0, 5.0]
    groups[1].samples[1].advantage = 2.5  # a caller's own; compared alone it got 0
    prepare(groups, GRPO(advantages="mean", branch_credit=credit))  # type: ignore[arg-type]
    assert [s.advantage for s in groups[2].samples] == ends
    of_middle, of_root = sum(ends), sum(ends) + 2.5
    if credit == "mean":
        of_middle, of_root = of_middle / 3, of_root / 4  # over the samples that end below
    assert groups[1].samples[0].advantage == pytest.approx(of_middle)
    assert root.advantage == pytest.approx(of_root)
    assert groups[0].samples[1].advantage == 0.0, "alone in its group: the span is not compared"


def test_by_default_a_span_has_a_reward_of_its_own() -> None:
    groups, root = branched()
    with pytest.raises(EngineError, match="group 0, sample 0: reward is None"):
        prepare(groups, GRPO())
    root.reward = groups[1].samples[0].reward = 1.0
    prepare(groups, GRPO(advantages="mean"))
    assert root.advantage == -4.0


@pytest.mark.parametrize(("credit", "copies"), [("own", None), ("sum", 1.0), ("mean", 1 / 3)])
def test_on_policy_a_sum_weighs_as_copies_of_the_span(
    folder: Path, credit: str, copies: float | None
) -> None:
    """Against N flattened samples that each carry the span, at full weight and at 1/N."""
    engine = load(folder)
    span, prompt = [11, 12, 13], [5, 6]
    ends, advantages = ([21, 22], [23], [24, 25, 26]), (1.0, -0.5, 2.0)
    parent = outside(prompt, span, advantage=0.75)
    tails = [outside(prompt + span, e, advantage=a) for e, a in zip(ends, advantages, strict=True)]
    shared = [Group(prompt, [parent], tree=0), Group(prompt + span, tails, tree=0, parent=parent)]
    config = GRPO(branch_credit=credit, normalizer="constant")  # type: ignore[arg-type]
    prepare(shared, config)
    engine.forward_backward(shared, GRPOLoss(config))
    mine = gradient(engine)
    engine.zero_grad()
    if copies is None:
        flat = [outside(prompt, span, advantage=0.75)]
        flat += [outside(prompt + span, e, advantage=a) for e, a in zip(ends, advantages, strict=True)]
        groups = [Group(s.prompt_ids, [s]) for s in flat]
    else:
        rows = zip(ends, advantages, strict=True)
        flat = [outside(prompt, span + e, advantage=a, weight=[copies] * 3 + [1.0] * len(e)) for e, a in rows]
        groups = [Group(prompt, flat)]
    engine.forward_backward(groups, GRPOLoss(config))
    assert float(mine.norm()) > 1e-2
    assert float((mine - gradient(engine)).norm() / mine.norm()) < 1e-5
