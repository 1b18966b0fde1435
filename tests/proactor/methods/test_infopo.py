"""InfoPO: worked values, both forms of fusion, and the gap to mutual information by enumeration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import EngineError, ProactorError
from proactor.environments.episode import Episode
from proactor.methods import turn_credit
from proactor.methods.infopo import (
    CODE_FORM,
    InfoPO,
    deviation,
    feedback_span,
    gate,
    information_advantages,
    information_gain,
    information_gap,
    masked,
    token_advantages,
)
from tests.proactor.methods.episodes import episode

near = pytest.approx


def test_gain_of_two_tokens() -> None:
    assert information_gain([-0.1, -0.3], [-1.1, -0.7]) == near(0.7)


def test_the_placeholder_keeps_the_length() -> None:
    assert masked(2, [7, 8, 9]) == [7, 8]
    assert masked(5, [7, 8, 9]) == [7, 8, 9, 9, 9]
    assert masked(3, [7, 8, 9]) == [7, 8, 9]
    with pytest.raises(ProactorError, match="the placeholder has no token"):
        masked(3, [])


def test_valid_turns() -> None:
    three = episode([0.0, 0.0, 1.0])
    assert [feedback_span(three, t) for t in range(3)] == [(2, 4), (6, 8), None]
    assert feedback_span(three, 0, frame=(1, 0)) == (3, 4)
    assert feedback_span(three, 0, frame=(1, 1)) is None
    silent = episode([0.0, 1.0])
    silent.turns = [type(t)(t.calls, t.action, t.observation) for t in silent.turns]  # no feedback
    assert feedback_span(silent, 0) is None
    assert feedback_span(episode([0.0, 1.0], observation=0), 0) is None


@pytest.mark.parametrize(
    ("temperature", "weights"), [(0.5, (0.5, 0.4502, 0.2689, 0.1192)), (0.05, (0.5, 0.1192, 0.0, 0.0))]
)
def test_gate(temperature: float, weights: tuple[float, ...]) -> None:
    assert [gate(s, temperature) for s in (0.0, 0.1, 0.5, 1.0)] == near(weights, abs=1e-4)
    assert gate(1e9, temperature) == near(0.0)


def test_a_group_of_one_has_a_deviation_of_one() -> None:
    assert deviation([0.3]) == 1.0 and deviation([0.0, 1.0]) == near(0.70711, abs=1e-5)


def test_turns_normalised_over_the_group() -> None:
    gains = [[0.7, 0.1, None], [0.4, None]]
    lengths = [[2, 4, 1], [2, 1]]
    assert information_advantages(gains, lengths, "turn") == [near([1, -1, 0], abs=1e-5), near([0, 0])]


def test_tokens_normalised_over_the_group() -> None:
    """Token values 0.35, 0.025, 0.2 of actions of 2, 4 and 2 tokens: mean 0.15, deviation 0.14516."""
    gains = [[0.7, 0.1, 0.0, None], [0.4, None]]
    found = information_advantages(gains, [[2, 4, 3, 3], [2, 3]], "token")
    assert found == [near([1.3778, -0.8611, 0, 0], abs=1e-4), near([0.3444, 0], abs=1e-4)]


@pytest.mark.parametrize("info_norm", ["turn", "token"])
def test_a_single_value_is_no_advantage(info_norm: str) -> None:
    assert information_advantages([[0.4, None], []], [[1, 1], []], info_norm) == [[0, 0], []]  # type: ignore[arg-type]


def equal_scores() -> tuple[list[Episode], list[list[float | None]]]:
    """Three turns and two, all failed, with the gains of the worked check."""
    return [episode([0.0] * 3), episode([0.0] * 2)], [[0.7, 0.1, None], [0.4, None]]


def test_fusion_in_paper_form() -> None:
    """Where all failed, GRPO has no gradient; the information does: beta 0.5 times a gate of 0.5."""
    group, gains = equal_scores()
    credit = InfoPO().credit
    assert not any(any(tokens) for tokens in turn_credit.token_advantages(group, credit))
    ((first, second),) = token_advantages([group], [gains], InfoPO())
    assert first == near([0.25, 0.25, 0, 0, -0.25, -0.25, 0, 0, 0, 0], abs=1e-5)
    assert second == near([0.0] * 6)


def test_fusion_adds_to_the_outcome() -> None:
    group = [episode([0.0, 0.0, 1.0]), episode([0.0, 0.0])]
    gains = [[0.7, 0.1, None], [0.4, None]]
    ((first, second),) = token_advantages([group], [gains], InfoPO())
    weight = 0.5 * gate(math.sqrt(0.5), 0.5)
    size = math.sqrt(0.5)
    assert first == near([size + weight] * 2 + [0, 0] + [size - weight] * 2 + [0, 0] + [size] * 2, abs=1e-5)
    assert second == near([-size, -size, 0, 0, -size, -size], abs=1e-5)


def test_the_weight_decays_by_epoch() -> None:
    group, gains = equal_scores()
    ((first, _),) = token_advantages([group], [gains], InfoPO(decay=1.0), epoch=2)
    assert first[0] == near(0.25 * math.exp(-2), abs=1e-5)


def test_bounded_scaling_is_over_the_whole_batch() -> None:
    """One group far apart in information: its deviation over the batch's tokens is brought to 1 at most."""
    lengths = [1, 30]
    group = [episode([0.0, 0.0, 0.0], lengths=[*lengths, 2]), episode([0.0] * 2, lengths=[30, 2])]
    gains: list[list[float | None]] = [[5.0, -0.3, None], [0.3, None]]
    quiet, nothing = equal_scores()[0], [[None] * 3, [None] * 2]
    free = token_advantages([group, quiet], [gains, nothing], InfoPO(info_norm="token"))
    bound = token_advantages([group, quiet], [gains, nothing], CODE_FORM)
    trained = [
        value / 0.25
        for episodes, tokens in zip((group, quiet), free, strict=True)
        for e, values in zip(episodes, tokens, strict=True)
        for value, on in zip(values, e.sample.trained_mask(), strict=True)
        if on
    ]
    m = min(1.0, 1.0 / float(np.std(trained, ddof=1)))
    assert bound[0][0][0] == near(m * free[0][0][0])
    once = token_advantages([equal_scores()[0]], [nothing], CODE_FORM)
    assert not any(any(tokens) for tokens in once[0])


def test_bounded_scaling_is_over_the_batch_of_all_ranks() -> None:
    """Long actions with most information: on one rank their tokens spread more than on both together."""
    config = InfoPO(info_norm="turn", bounded=True)
    group = [episode([0.0] * 5, lengths=[30, 30, 1, 1, 1])]
    gains: list[list[float | None]] = [[5.0, -5.0, 0.1, 0.2, None]]
    quiet, nothing = equal_scores()[0], [[None] * 3, [None] * 2]
    whole = token_advantages([group, quiet], [gains, nothing], config)
    told: list[Any] = []

    def tell(mine: Any) -> list[Any]:
        told.append(mine)
        return [mine]

    [alone] = token_advantages([group], [gains], config, gather=tell)
    token_advantages([quiet], [nothing], config, gather=tell)
    [together] = token_advantages([group], [gains], config, gather=lambda _: told[::-1])
    assert together == whole[0] != alone


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(EngineError, match="InfoPO: temperature"):
        InfoPO(temperature=0.0)
    with pytest.raises(EngineError, match="InfoPO: info_norm='sequence'"):
        InfoPO(info_norm="sequence")  # type: ignore[arg-type]


some_gains = st.lists(st.lists(st.none() | st.floats(-2, 2, width=16), max_size=4), min_size=1, max_size=4)


@given(some_gains, st.floats(0.1, 10), st.floats(-3, 3))
def test_turns_do_not_see_scale_or_shift_of_the_gains(
    gains: list[list[float | None]], scale: float, shift: float
) -> None:
    lengths = [[2] * len(g) for g in gains]
    found = information_advantages(gains, lengths, "turn")
    assert sum(map(sum, found)) == near(0.0, abs=1e-6)
    flat = [g for of_episode in gains for g in of_episode if g is not None]
    if len(flat) > 1 and np.std(flat) > 1e-2:
        moved = [[None if g is None else scale * g + shift for g in of_episode] for of_episode in gains]
        assert information_advantages(moved, lengths, "turn") == [near(f, abs=1e-2) for f in found]


# --- the gap to mutual information ---


def distribution(
    generator: np.random.Generator, *shape: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return generator.dirichlet(np.ones(shape[-1]), size=shape[:-1] or None)


@pytest.mark.parametrize("seed", range(5))
def test_mean_gain_is_mutual_information_and_a_gap(seed: int) -> None:
    """By enumeration: each observation and each next action of one token, weighted by its probability."""
    generator = np.random.default_rng(seed)
    p, given_o, hidden = distribution(generator, 4), distribution(generator, 4, 6), distribution(generator, 6)
    found = information_gap(p, given_o, hidden)
    mean = math.fsum(
        p[o] * given_o[o, a] * information_gain([math.log(given_o[o, a])], [math.log(hidden[a])])
        for o in range(4)
        for a in range(6)
    )
    joint = p[:, None] * given_o
    entropy = lambda q: -math.fsum(x * math.log(x) for x in np.ravel(q))  # noqa: E731
    information = entropy(p) + entropy(joint.sum(axis=0)) - entropy(joint)
    assert found.gain == near(mean, abs=1e-12)
    assert found.mutual_information == near(information, abs=1e-12)
    assert found.excess == near(mean - information, abs=1e-12) and found.excess > 0


def test_no_gap_where_the_placeholder_gives_the_marginal() -> None:
    generator = np.random.default_rng(0)
    p, given_o = distribution(generator, 3), distribution(generator, 3, 4)
    found = information_gap(p, given_o, p @ given_o)
    assert found.excess == near(0.0, abs=1e-12) and found.gain == near(found.mutual_information, abs=1e-12)


def test_feedback_that_changes_nothing() -> None:
    """Next actions as under the placeholder: no gain. Next actions that are elsewhere alike: gap alone."""
    q = np.array([0.2, 0.3, 0.5])
    assert information_gap(np.array([0.5, 0.5]), np.array([q, q]), q).gain == near(0.0, abs=1e-12)
    other = np.array([0.5, 0.5, 0.0])
    shifted = information_gap(np.array([0.5, 0.5]), np.array([other, other]), q)
    assert shifted.mutual_information == near(0.0, abs=1e-12) and shifted.excess > 0.1
    assert math.isinf(information_gap(np.array([1.0]), q[None], other).gain)


def test_what_is_no_distribution_is_refused() -> None:
    q = np.array([0.5, 0.5])
    with pytest.raises(ProactorError, match="observations are no probabilities"):
        information_gap(np.array([0.5, 0.6]), np.array([q, q]), q)
    with pytest.raises(ProactorError, match=r"shapes \(2,\), \(2,\), \(2,\)"):
        information_gap(q, q, q)
