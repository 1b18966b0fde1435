"""Intervals by dialogue, and differences paired by dialogue and pooled over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from proactor.scoring.bootstrap import Interval, bootstrap_sums, intervals, paired_difference
from proactor.scoring.metrics import FIELDS, Contribution, aggregate


def run(hits: list[int], prefix: str = "d") -> list[Contribution]:
    """Dialogues with one reference each, hit by a first fire or not, and a turn reward to match."""
    rows = []
    for i, hit in enumerate(hits):
        sums = dict.fromkeys(FIELDS, 0.0) | {"references": 1.0, "first_hits": hit, "first_fires": 1.0}
        rows.append(Contribution(f"{prefix}{i}", sums | {"reward_sum": float(hit), "rewarded": 1.0}))
    return rows


def test_interval_matches_the_binomial_spread() -> None:
    data = run([1, 0] * 100)
    result = intervals(data, ("reward", "first_fire_f1"))["reward"]
    assert result.estimate == 0.5 == aggregate(data)["reward"]
    spread = 1.96 * np.sqrt(0.25 / 200)
    assert result.low == pytest.approx(0.5 - spread, abs=0.01) and result.high == pytest.approx(
        0.5 + spread, abs=0.01
    )
    few = {s: intervals(data, resamples=20, seed=s) for s in (3, 4)}
    assert few[3] == intervals(data, resamples=20, seed=3) != few[4]


def test_pairing_removes_the_spread_that_both_systems_share() -> None:
    generator = np.random.default_rng(0)
    before = [int(x) for x in generator.integers(0, 2, 200)]
    after = [1 if i < 10 else x for i, x in enumerate(before)]
    change = paired_difference([run(before)], [run(after)], ("reward",))["reward"]
    alone = intervals(run(after), ("reward",))["reward"]
    assert change.estimate == pytest.approx((sum(after) - sum(before)) / 200)
    assert change.high - change.low < (alone.high - alone.low) / 3


def test_pooling_is_the_mean_over_seeds_and_keeps_a_dialogue_together() -> None:
    worse, better = run([0] * 50), run([1, 0] * 25)
    one = paired_difference([worse], [better], ("reward",))["reward"]
    three = paired_difference([worse] * 3, [better] * 3, ("reward",))["reward"]
    assert (three.estimate, three.low, three.high) == pytest.approx((one.estimate, one.low, one.high))
    mixed = paired_difference([worse, worse], [better, worse], ("reward",))["reward"]
    assert mixed.estimate == pytest.approx(one.estimate / 2)
    reordered = paired_difference([worse], [better[::-1]], ("reward",))["reward"]
    assert reordered == one


def test_any_statistic_of_sums() -> None:
    rows = np.array([[1.0, 1.0], [0.0, 1.0]] * 100)
    interval = bootstrap_sums(rows, lambda sums: {"share": sums[..., 0] / sums[..., 1]}, ["share"])["share"]
    assert interval == intervals(run([1, 0] * 100), ("reward",))["reward"]


def test_excludes_zero() -> None:
    same = paired_difference([run([1, 0] * 20)], [run([1, 0] * 20)], ("reward",))["reward"]
    assert same == Interval(0.0, 0.0, 0.0, 0.95) and not same.excludes_zero
    up = paired_difference([run([0] * 40)], [run([1, 1, 0, 1] * 10)], ("reward",))["reward"]
    assert up.excludes_zero and up.low > 0


def test_undefined_resamples_are_left_out() -> None:
    result = intervals(run([1, 0, 0]), ("difference", "lead", "reward"))
    assert np.isnan(result["difference"].low) and np.isnan(result["difference"].estimate)
    assert result["lead"].low == 0.0


def test_seeds_may_have_dialogues_of_their_own() -> None:
    change = paired_difference(
        [run([0, 0], "a"), run([0, 0], "b")], [run([1, 1], "a"), run([1, 1], "b")], ("reward",)
    )["reward"]
    assert change.estimate == 1.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([run([1])], [run([1, 0])], "'d1' was scored before or after, not both"),
        ([run([1])], [], "1 seeds before, 0 after"),
        ([run([1]) * 2], [run([1]) * 2], "'d0' appears twice"),
        ([[]], [[]], "no dialogues"),
    ],
)
def test_unpaired_input_is_refused(
    before: list[list[Contribution]], after: list[list[Contribution]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(before, after)
    with pytest.raises(ValueError, match="no dialogues"):
        intervals([])
