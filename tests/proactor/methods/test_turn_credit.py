"""UserRL's credits and scores: worked values, tokens of turns, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import EngineError, ProactorError
from proactor.methods import turn_credit
from proactor.methods.turn_credit import TurnCredit, exponential, reward_to_go, token_advantages
from tests.proactor.methods.episodes import episode

REWARDS = [0.2, 0.0, 1.0]
near = pytest.approx


def test_reward_to_go_of_turns_and_episode() -> None:
    assert reward_to_go(REWARDS) == near([0.84, 0.8, 1.0])
    assert TurnCredit(score="r2g").scored(REWARDS) == near(0.84)


def test_the_sum_is_a_mean_in_userrls_code() -> None:
    assert TurnCredit(score="mean").scored(REWARDS) == 0.4
    assert TurnCredit(score="mean").scored([0.0, 0.0, 1.0]) == 0.3333
    assert TurnCredit(score="sum").scored(REWARDS) == near(1.2)


def test_exponential_mapping() -> None:
    assert exponential([0, 0.25, 0.5, 1]) == [0.5, 0.7275, 0.8655, 1.0]


def test_tokens_keep_the_mean_of_the_episode() -> None:
    """Two turns of two tokens with weights 0.5 and 1: EM of rewards 0 and 1."""
    lone = episode([0.0, 1.0])
    (tokens,) = token_advantages([lone], TurnCredit(turns="em", score="sum"))  # a group of one: A = S = 1
    assert tokens == near([2 / 3, 2 / 3, 0, 0, 4 / 3, 4 / 3])


def test_weights_count_by_tokens() -> None:
    lone = episode([0.0, 1.0], lengths=[6, 2])
    assert turn_credit.turn_factors(lone, TurnCredit(turns="em")) == near([0.8, 1.6])


def test_a_turn_without_credit_gets_nothing() -> None:
    (tokens,) = token_advantages([episode([0.0, 1.0])], TurnCredit(turns="r2g", gamma=0.0, score="sum"))
    assert tokens == [0, 0, 0, 0, 1, 1]


def test_no_credit_at_all_gives_zeros() -> None:
    failed, solved = episode([0.0, 0.0]), episode([0.0, 1.0])
    tokens = token_advantages([failed, solved], TurnCredit(turns="r2g"))
    assert tokens[0] == [0.0] * 6 and tokens[1][0] > 0


@pytest.mark.parametrize("rewards", [[-1.0, 0.5], [-0.5, 0.5]])
def test_credits_that_turn_the_sign_around_are_refused(rewards: list[float]) -> None:
    bad = episode(rewards, task="rule 12")
    with pytest.raises(ProactorError, match=r"^episode of function 'rule 12', seed 7: turn credits \(r2g\)"):
        token_advantages([episode([1.0, 1.0]), bad], TurnCredit(turns="r2g", gamma=0.0))


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(ProactorError, match="'a task', seed 7: the reward of turn 2 is nan"):
        token_advantages([episode([0.0, math.nan])], TurnCredit())


def test_both_conventions_of_the_group() -> None:
    group = [episode(REWARDS), episode([0.0, 0.0, 0.0])]
    for convention, size in (("verl", 0.70711), ("art", 1.0)):
        tokens = token_advantages(group, TurnCredit(advantages=convention))  # type: ignore[arg-type]
        assert [t[0] for t in tokens] == near([size, -size], abs=1e-5)


def test_masked_tokens_of_an_action_get_nothing_and_do_not_count() -> None:
    lone = episode([0.0, 1.0])
    lone.sample.mask = [True, False, False, False, True, True]
    (tokens,) = token_advantages([lone], TurnCredit(turns="em", score="sum"))
    assert tokens == near([0.5 * 3 / 2.5, 0, 0, 0, 3 / 2.5, 3 / 2.5])


def test_an_episode_without_turns_scores_nothing() -> None:
    for score in ("mean", "sum", "r2g"):
        assert TurnCredit(score=score).scored([]) == 0.0  # type: ignore[arg-type]
    assert token_advantages([episode([]), episode([1.0])], TurnCredit())[0] == []
    assert token_advantages([], TurnCredit()) == []


def test_unknown_options_are_refused() -> None:
    with pytest.raises(EngineError, match="TurnCredit: turns='naive'"):
        TurnCredit(turns="naive")  # type: ignore[arg-type]


some_rewards = st.lists(st.floats(0, 1, width=16), min_size=1, max_size=6)


@given(
    st.lists(some_rewards, min_size=2, max_size=5),
    st.sampled_from(["equalized", "r2g", "em"]),
    st.sampled_from(["sum", "r2g"]),
    st.floats(0.1, 10),
)
def test_any_positive_scale_and_any_order_of_a_group_give_the_same(
    rewards: list[list[float]], turns: str, score: str, scale: float
) -> None:
    """EM bends rewards, so that a scale changes its credits: there only the order is tried."""
    credit = TurnCredit(turns=turns, score=score)  # type: ignore[arg-type]
    group = [episode(r) for r in rewards]
    values = token_advantages(group, credit)
    assert token_advantages(group[::-1], credit)[::-1] == [near(v, abs=1e-9) for v in values]
    scores = [credit.scored(r) for r in rewards]
    if turns != "em" and np.std(scores) > 1e-2:  # below, the 1e-6 beside the deviation shows
        scaled = token_advantages([episode([scale * x for x in r]) for r in rewards], credit)
        assert scaled == [near(v, abs=1e-2) for v in values]


@given(some_rewards, st.sampled_from(["equalized", "r2g", "em"]), st.data())
def test_the_mean_over_credited_tokens_is_the_episodes_advantage(
    rewards: list[float], turns: str, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(rewards), max_size=len(rewards)))
    factors = turn_credit.turn_factors(episode(rewards, lengths=lengths), TurnCredit(turns=turns))  # type: ignore[arg-type]
    credited = [(f, n) for f, n in zip(factors, lengths, strict=True) if f]
    if credited:
        assert math.fsum(f * n for f, n in credited) / sum(n for _, n in credited) == near(1.0)
