"""From rewards to batches: the two published conventions, what is left out and still counted, and the
reported means.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from proactor.engine import GRPO, EngineError, Group, Sample
from proactor.engine.trainer import Tally
from proactor.engine.update import means, prepare, statistics
from proactor.kernels.grpo import group_advantages
from proactor.kernels.jit import HAS_TRITON, interpreted


def group(*rewards: float | None, tokens: int = 4, **changes: object) -> Group:
    samples = [Sample([1, 2], [3] * (tokens + i), reward=r) for i, r in enumerate(rewards)]
    return Group([1, 2], samples, **changes)  # type: ignore[arg-type]


def advantages(batch: list[Group]) -> list[object]:
    return [s.advantage for g in batch for s in g.samples]


def test_two_conventions() -> None:
    rewards = [1.0, 2.0, 3.0, 6.0]  # mean 3, squared deviations 4 + 1 + 0 + 9
    art, verl = math.sqrt(14 / 4), math.sqrt(14 / 3)
    assert group_advantages(rewards, "art") == pytest.approx([-2 / art, -1 / art, 0, 3 / art], rel=1e-5)
    assert group_advantages(rewards, "verl") == pytest.approx([-2 / verl, -1 / verl, 0, 3 / verl], rel=1e-5)
    assert group_advantages([5.0], "art") == [0.0] and group_advantages([5.0], "verl") == [5.0]
    for convention in ("art", "verl"):
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
@pytest.mark.parametrize("convention", ["art", "verl"])
def test_ragged_groups_in_one_launch(monkeypatch: pytest.MonkeyPatch, convention: Any) -> None:
    rewards = ((0.0, 1.0, 5.0), (2.0,), (1.0, 1.0), (3.0, -1.0, 0.5, 0.25))
    alone, together = [group(*r) for r in rewards], [group(*r) for r in rewards]
    for groups in (alone, together):
        groups[0].samples[1].advantage = 0.75
    prepare(alone, GRPO(advantages=convention))
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    prepare(together, GRPO(advantages=convention))
    for found, expected in zip(together, alone, strict=True):
        assert advantages([found]) == pytest.approx(advantages([expected]), rel=1e-6)


def test_a_group_without_spread_is_left_out_and_counted() -> None:
    flat, live = group(1.0, 1.0), group(0.0, 1.0)
    [(kept, normalizer)], sums = prepare([flat, live], GRPO())
    assert kept == [live] and sums["flat_groups"] == 1 and sums["groups"] == 2
    assert normalizer == 4 + 5 + 4 + 5, "its tokens count all the same"
    [(kept, normalizer)], _ = prepare([flat, live], GRPO(normalizer="samples"))
    assert normalizer == 4
    [(kept, normalizer)], _ = prepare([flat, live], GRPO(normalizer="constant", constant=7.5))
    assert normalizer == 7.5
    [(kept, _)], _ = prepare([flat, live], GRPO(beta=0.1))
    assert kept == [flat, live], "with a KL term it has a gradient"
    child = Group([1, 2, 3, 3, 3, 3], group(0.0, 1.0).samples, parent=flat.samples[0])
    [(kept, _)], _ = prepare([flat, child], GRPO())
    assert kept == [flat, child], "others hang off it"


def test_epochs_and_minibatches_deal_whole_trees() -> None:
    groups = [group(0.0, 1.0, tree="ab"[i % 2] if i < 4 else None) for i in range(7)]
    batches, _ = prepare(groups, GRPO(epochs=2, minibatches=2))
    assert len(batches) == 4 and [len(g) for g, _ in batches] == [4, 3, 4, 3]
    assert batches[0][0] == [groups[0], groups[2], groups[4], groups[6]]
    for part, _ in batches:
        keys = {g.tree for g in part} - {None}
        assert all(sum(g.tree == key for g in part) == 2 for key in keys)
    assert sorted(id(g) for part, _ in batches[:2] for g in part) == sorted(id(g) for g in groups)


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
    found = means(statistics(tally))
    assert (
        found["loss"] == 0.5
        and found["entropy"] == 2
        and found["sampler_trainer_gap"] == 0.25
        and found["clip_share"] == 0.3
    )
    assert found["reward_mean"] == 2 and found["reward_std"] == pytest.approx(math.sqrt(20 / 3 - 4))
    assert found["zero_spread_share"] == 0.25 and found["truncated_share"] == 0.25
    assert found["tokens_computed"] == 30 and found["tokens_avoided"] == 60 and found["mine"] == 0.2
    assert means(statistics(Tally()))["loss"] == 0.0, "an empty rank divides by no zero"
