"""Spread of a judge, and agreement of two scores over pairs within groups."""

from __future__ import annotations

import pytest

from proactor.ruler import RankAgreement, compare_rankings, spread


def test_spread_is_the_mean_deviation_within_groups() -> None:
    assert spread([[0.9, 0.6, 0.6, 0.3], [0.5, 0.5], [0.1]]) == pytest.approx(0.21213 / 2, abs=1e-5)
    assert spread([[1.0], []]) is None


def test_pairs_are_counted_within_groups_by_order_and_ties() -> None:
    agreement = compare_rankings([[3, 2, 1], [1, 1], [0, 1]], [[9, 5, 7], [0, 0], [2, 2]])
    assert agreement == RankAgreement(same=2, opposite=1, tied_both=1, tied_second=1)
    assert agreement.pairs == 5 and agreement.rate == pytest.approx(2 / 3)
    assert agreement.tau == pytest.approx((2 - 1) / (4 * 3) ** 0.5)


def test_no_ordered_pair_no_rate() -> None:
    assert compare_rankings([[1, 1]], [[1, 2]]).rate is None
    assert compare_rankings([[1, 1]], [[1, 2]]).tau is None
    assert (
        compare_rankings([[1, 2]], [[1, 2]]).tau == 1.0 and compare_rankings([[1, 2]], [[2, 1]]).rate == 0.0
    )
    assert compare_rankings([[0.1 + 0.2, 0.3]], [[1, 2]]) == RankAgreement(tied_first=1), (
        "rounding is no order"
    )


def test_groups_must_match() -> None:
    with pytest.raises(ValueError, match="2 scores beside one of 1"):
        compare_rankings([[1, 2]], [[1]])
    with pytest.raises(ValueError):
        compare_rankings([[1, 2]], [])
