"""From rewards to batches: both published conventions, what is skipped but counted, reported means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from proactor.engine import GRPO, EngineError, Group, Sample
from proactor.engine.parallel import Parallel
from proactor.engine.trainer import Tally
from proactor.engine.update import Batch, _content, deal, means, prepare, statistics
from proactor.kernels.grpo import CONVENTIONS, group_advantages
from proactor.kernels.jit import HAS_TRITON, interpreted


def group(*rewards: float | None, tokens: int = 4, **changes: object) -> Group:
    samples = [Sample([1, 2], [3] * (tokens + i), reward=r) for i, r in enumerate(rewards)]
    return Group([1, 2], samples, **changes)  # type: ignore[arg-type]


def advantages(batch: list[Group]) -> list[object]:
    return [s.advantage for g in batch for s in g.samples]


def test_conventions() -> None:
    rewards = [1.0, 2.0, 3.0, 6.0]  # mean 3, squared deviations 4 + 1 + 0 + 9
    art, verl = math.sqrt(14 / 4), math.sqrt(14 / 3)
    assert group_advantages(rewards, "art") == pytest.approx([-2 / art, -1 / art, 0, 3 / art], rel=1e-5)
    assert group_advantages(rewards, "verl") == pytest.approx([-2 / verl, -1 / verl, 0, 3 / verl], rel=1e-5)
    assert group_advantages([5.0], "art") == [0.0] and group_advantages([5.0], "verl") == [5.0]
    assert group_advantages(rewards, "mean") == [-2.0, -1.0, 0.0, 3.0]
    assert group_advantages(rewards, "rloo") == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 0, 6 - 2.0])
    assert group_advantages([5.0], "mean") == group_advantages([5.0], "rloo") == [0.0]
    for convention in CONVENTIONS:
        assert group_advantages([0.1] * 7, convention) == [0.0] * 7, "rounding in the mean is no spread"


def test_rewards_become_advantages_anew_each_time() -> None:
    groups = [group(0.0, 1.0)]
    prepare(groups, GRPO())
    assert advantages(groups) == pytest.approx([-1, 1], abs=1e-5)
    groups[0].rewards = [1.0, 0.0]
    prepare(groups, GRPO(advantages="verl"))
    assert advantages(groups) == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-5)
    groups[0].samples[0].advantage = 3.0  # a caller's own stays
    prepare(groups, GRPO())
    assert advantages(groups)[0] == 3.0


@pytest.mark.skipif(not (HAS_TRITON and interpreted()), reason="runs kernels on CPU tensors")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_ragged_groups_in_one_launch(monkeypatch: pytest.MonkeyPatch, convention: Any) -> None:
    rewards = ((0.0, 1.0, 5.0), (2.0,), (1.0, 1.0), (3.0, -1.0, 0.5, 0.25))
    alone, together = [group(*r) for r in rewards], [group(*r) for r in rewards]
    for groups in (alone, together):
        groups[0].samples[1].advantage = 0.75
    prepare(alone, GRPO(advantages=convention))
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    prepare(together, GRPO(advantages=convention))
    for several, expected in zip(together, alone, strict=True):
        assert advantages([several]) == pytest.approx(advantages([expected]), rel=1e-6)


LONE = Parallel(torch.device("cpu"))


def batches(groups: list[Group], config: GRPO, parallel: Parallel = LONE) -> list[Batch]:
    return deal(prepare(groups, config)[0], config, parallel)


def test_a_group_without_spread_is_left_out_and_counted() -> None:
    flat, live = group(1.0, 1.0), group(0.0, 1.0)
    _, sums = prepare([flat, live], GRPO())
    [(kept, counted)] = batches([flat, live], GRPO())
    assert kept == [live] and sums["flat_groups"] == 1 and sums["groups"] == 2
    assert counted == 4 + 5 + 4 + 5, "its tokens count all the same"
    [(kept, counted)] = batches([flat, live], GRPO(normalizer="samples"))
    assert counted == 4
    [(kept, counted)] = batches([flat, live], GRPO(normalizer="constant", constant=7.5))
    assert counted is None, "a constant has no part in each batch"
    [(kept, _)] = batches([flat, live], GRPO(beta=0.1))
    assert kept == [flat, live], "with a KL term it has a gradient"
    child = Group([1, 2, 3, 3, 3, 3], group(0.0, 1.0).samples, parent=flat.samples[0])
    [(kept, _)] = batches([flat, child], GRPO())
    assert kept == [flat, child], "others hang off it"
    for sample in child.samples:
        sample.reward = 1.0
    assert batches([flat, child], GRPO())[0][0] == [], "nothing that has a gradient hangs off it"


def test_masked_samples_and_groups_do_not_count() -> None:
    """A sample without a trained token has no token mean, so "samples" divides by the others alone."""
    mixed, masked = group(0.0, 1.0, 5.0), group(0.0, 1.0)
    for sample in (mixed.samples[0], *masked.samples):
        sample.mask = [False] * len(sample.token_ids)
    kept, sums = prepare([mixed, masked], GRPO())
    assert kept == [mixed] and sums["masked_groups"] == 1 and sums["flat_groups"] == 0
    assert batches([mixed, masked], GRPO(normalizer="samples")) == [([mixed], 2.0)]
    assert batches([mixed, masked], GRPO()) == [([mixed], 5.0 + 6.0)]


def test_epochs_and_minibatches_deal_whole_trees() -> None:
    groups = [group(0.0, i + 1.0, tokens=i + 1, tree="ab"[i % 2] if i < 4 else None) for i in range(7)]
    minibatches = batches(groups, GRPO(epochs=2, minibatches=2))
    assert len(minibatches) == 4 and minibatches[:2] == minibatches[2:]
    units = [len({g.tree or id(g) for g in part}) for part, _ in minibatches]
    assert units == [3, 2, 3, 2], "five trees"
    for part, counted in minibatches:
        keys = {g.tree for g in part} - {None}
        assert all(sum(g.tree == key for g in part) == 2 for key in keys)
        assert counted == sum(len(s.token_ids) for g in part for s in g.samples)
    assert sorted(id(g) for part, _ in minibatches[:2] for g in part) == sorted(id(g) for g in groups)


@pytest.mark.parametrize("minibatches", [2, 3, 9])
def test_minibatches_do_not_depend_on_the_dealing(minibatches: int) -> None:
    """Ranks, their shares and the order of the groups change nothing about who shares a step."""
    config = GRPO(minibatches=minibatches)
    groups = [group(0.0, i + 1.0, tokens=i + 1) for i in range(7)]
    expected = [{id(g) for g in part} for part, _ in batches(groups, config)]
    assert max(map(len, expected)) - min(map(len, expected)) <= 1
    shares = [[groups[i::3] for i in range(3)], [groups[4:], groups[:4][::-1], []], [groups[::-1]]]
    for dealt in shares:
        parts: list[set[int]] = [set() for _ in range(minibatches)]
        for rank in range(len(dealt)):
            for part, (members, _) in zip(
                parts, batches(dealt[rank], config, Ranks(rank, dealt)), strict=True
            ):
                part.update(id(g) for g in members)
        assert parts == expected


class Ranks(Parallel):
    """One rank of several in this process, each with its groups."""

    def __init__(self, rank: int, dealt: list[list[Group]]) -> None:
        super().__init__(torch.device("cpu"))
        self.rank, self.dealt = rank, dealt

    def gather(self, value: Any, phase: str = "") -> list[Any]:
        return [[_content([g]) for g in groups] for groups in self.dealt]


def test_what_cannot_be_trained_on_is_refused_by_place() -> None:
    for bad in (None, math.nan, math.inf):
        with pytest.raises(EngineError, match=f"group 1, sample 1: reward is {bad}"):
            prepare([group(0.0, 1.0), group(0.0, bad)], GRPO())
    mixed = group(1.0, None)
    mixed.samples[1].advantage = 0.5
    with pytest.raises(EngineError, match="group 0, sample 1: reward is None; all samples of a group need"):
        prepare([mixed], GRPO())
    mixed.samples[0].advantage = [0.1, 0.2, 0.3]
    with pytest.raises(EngineError, match="advantage: 3 values for a sample of 1 turns and 4 tokens"):
        prepare([mixed], GRPO())
    with pytest.raises(EngineError, match="rewards: 3 values for 2 samples"):
        mixed.rewards = [1, 2, 3]
    for values, words in (([None, 0.0], "value 0 is None"), ([0.0, "high"], "value 1 is 'high'")):
        with pytest.raises(EngineError, match=f"^rewards: {words}, not a number$"):
            mixed.rewards = values
    assert mixed.rewards == [1.0, None], "nothing is set"


@pytest.mark.parametrize("bad", [math.nan, -math.inf, 1e39, np.float32("nan"), torch.tensor(math.inf)])
def test_an_advantage_that_is_not_finite_is_refused_by_place(bad: Any) -> None:
    good = Group([1, 2], [Sample([1, 2], [3, 4], advantage=0.5)])
    for advantage in (bad, [0.5, bad], np.array([bad, 0.5])):
        sample = Sample([1, 2], [3, 4], advantage=advantage)
        with pytest.raises(
            EngineError, match=r"^group 1, sample 1: advantage is (nan|-?inf|1e\+39); it should"
        ):
            prepare([good, Group([1, 2], [good.samples[0], sample])], GRPO())
    masked = Sample([1, 2], [3, 4], advantage=[bad, 0.5], mask=[False, True])
    assert prepare([Group([1, 2], [masked])], GRPO())[1]["flat_groups"] == 0, "a masked token has none"
    with pytest.raises(EngineError, match=r"^group 0, sample 0: reward is 1e\+308; "):
        prepare([group(1e308, 1e308, 0.0)], GRPO())  # finite rewards, whose mean is not


def test_advantages_may_be_numpy_or_torch() -> None:
    def values(advantage: Any) -> list[float]:
        return Sample([1], [5, 6, 7], mask=[True, False, True], advantage=advantage).token_advantages()

    for one in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)):
        assert values(one) == [2.0, 0.0, 2.0]
    for many in ((1, 2), np.array([1.0, 2.0], np.float32), torch.tensor([1, 2]), [np.float32(1), np.int8(2)]):
        assert values(many) == [1.0, 0.0, 2.0]
    assert values(np.arange(3)) == [0.0, 0.0, 2.0] and values(None) == [0.0] * 3
    for bad in ("high", ["a", "b"], object(), np.zeros((2, 2))):
        with pytest.raises(EngineError, match=r"^advantage: .* is neither a number nor a list of numbers$"):
            values(bad)


def test_reported_means() -> None:
    tally = Tally()
    tally.sums.update(
        {
            "tokens": 10,
            "loss": 5.0,
            "entropy": 20.0,
            "gap": 1.0,
            "gap_tokens": 4,
            "clip_share": 3,
            "rows": 30,
            "flat": 90,
        }
    )
    tally.sums.update(
        {
            "groups": 4,
            "flat_groups": 1,
            "reward": 6.0,
            "reward_squared": 20.0,
            "rewarded": 3,
            "truncated": 2,
            "all_samples": 8,
            "mine": 2.0,
        }
    )
    tally.sums["masked_groups"] = 1.0
    stats = means(statistics(tally), 20.0)
    assert (
        stats["loss"] == 0.25
        and stats["entropy"] == 2
        and stats["sampler_trainer_gap"] == 0.25
        and stats["clip_share"] == 0.3
    )
    assert stats["reward_mean"] == 2 and stats["reward_std"] == pytest.approx(math.sqrt(20 / 3 - 4))
    assert stats["zero_spread_share"] == 0.25 and stats["truncated_share"] == 0.25
    assert stats["tokens_computed"] == 30 and stats["tokens_avoided"] == 60 and stats["mine"] == 0.2
    assert stats["masked_groups"] == 1
    assert means(statistics(Tally()), 0.0)["loss"] == 0.0, "an empty rank divides by no zero"
