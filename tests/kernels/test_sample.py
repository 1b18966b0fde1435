"""Keyed noise, filters that keep what transformers keeps, and draws that follow the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from proactor.kernels.sample import Filters, draw, filter_weights, philox, sample_tokens, uniforms


def words(counter: list[int], seed: int) -> list[str]:
    return [f"{int(w):08x}" for w in philox(np.asarray([counter], np.uint64), seed)[0]]


def test_philox_published_vectors() -> None:
    """Known answers of Random123 for philox4x32-10 (kat_vectors): zeros, ones, and digits of pi."""
    full = 0xFFFFFFFF
    assert words([0, 0, 0, 0], 0) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words([full] * 4, full << 32 | full) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert words(digits, 0x299F31D0 << 32 | 0xA4093822) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def test_uniforms_belong_to_their_key() -> None:
    group, sample, position = np.arange(50), np.arange(50) % 7, np.arange(50) * 3
    whole = uniforms(9, 4, group, sample, position)
    some = uniforms(9, 4, group[10:20][::-1], sample[10:20][::-1], position[10:20][::-1])
    assert np.array_equal(whole[10:20][::-1], some)
    assert len(set(whole)) == 50
    for other in (
        uniforms(10, 4, group, sample, position),
        uniforms(9, 5, group, sample, position),
        uniforms(9, 4, group + 1, sample, position),
        uniforms(9, 4, group, sample + 1, position),
        uniforms(9, 4, group, sample, position + 1),
    ):
        assert not np.any(whole == other)


def test_uniforms_are_uniform() -> None:
    n = 20_000
    noise = uniforms(1, 0, np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64))
    assert noise.min() > 0 and noise.max() < 1
    counts = np.histogram(noise, bins=50, range=(0, 1))[0]
    chi = float(((counts - n / 50) ** 2 / (n / 50)).sum())
    assert 20 < chi < 95  # 49 degrees of freedom: 1e-4 on either side


def filters(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, rows: int = 1) -> Filters:
    return Filters(torch.full((rows,), top_k), torch.full((rows,), top_p), torch.full((rows,), min_p))


def by_transformers(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """What transformers' generate keeps: its processors in its order."""
    scores = logits.clone()
    ids = torch.zeros(len(logits), 1, dtype=torch.int64)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    return scores


@pytest.mark.parametrize("top_k", [0, 1, 5, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.7])
def test_filters_equal_transformers(top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(13, 131, dtype=torch.float64) * torch.linspace(0.1, 6, 13).double()[:, None]
    expected = by_transformers(logits, top_k, top_p, min_p)
    kept = filter_weights(logits.softmax(-1), filters(top_k, top_p, min_p, 13))
    assert torch.equal(kept > 0, expected > -torch.inf)
    torch.testing.assert_close(kept / kept.sum(-1, keepdim=True), expected.softmax(-1), rtol=1e-9, atol=1e-12)


def test_rows_have_their_own_settings() -> None:
    """The tokens that a row keeps do not depend on the other rows of the batch."""
    torch.manual_seed(1)
    logits = (
        torch.randn(4, 60) * torch.tensor([20.0, 3, 3, 3])[:, None]
    )  # the first ends in what a sum in float32 cannot see
    settings_of = [(0, 1.0, 0.0), (3, 1.0, 0.0), (7, 0.5, 0.0), (0, 1.0, 0.3)]
    batch = Filters(*(torch.tensor(column) for column in zip(*settings_of, strict=True)))
    together = filter_weights(logits.softmax(-1), batch)
    for i, (k, p, m) in enumerate(settings_of):
        assert torch.equal(together[i], filter_weights(logits[i : i + 1].softmax(-1), filters(k, p, m))[0])


def test_a_mask_comes_before_the_filters() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    allowed = torch.tensor([[False, True, True, True]])
    filtered = filter_weights(
        probs, Filters(torch.tensor([2]), torch.tensor([1.0]), torch.tensor([0.0]), allowed)
    )
    assert (filtered > 0).tolist() == [[False, True, True, False]]
    filtered = filter_weights(
        probs, Filters(torch.tensor([0]), torch.tensor([0.55]), torch.tensor([0.0]), allowed)
    )
    assert (filtered > 0).tolist() == [[False, True, False, False]]  # 0.3 of the remaining 0.5 is the nucleus
    assert torch.equal(probs, torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64))


weights = st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 0.25, 1.0, 3.7]), min_size=1, max_size=200).filter(
    any
)


@settings(max_examples=200, deadline=None)
@given(weights, st.floats(0, 1, exclude_max=True))
def test_draws_invert_the_cumulative_distribution(values: list[float], uniform: float) -> None:
    probs = torch.tensor([values], dtype=torch.float64)
    token = int(draw(probs, torch.tensor([uniform], dtype=torch.float64)))
    total = sum(values)
    assert values[token] > 0
    slack = 1e-9 * total
    assert sum(values[:token]) - slack <= uniform * total <= sum(values[: token + 1]) + slack


def test_a_token_of_weight_zero_is_never_drawn() -> None:
    """Rounding can put the target just below the start of a block, which may begin with zeros."""
    torch.manual_seed(0)
    probs = torch.rand(4000, 128, dtype=torch.float64)
    probs[:, :64] *= 1e-12  # the border is then a small difference of large sums
    probs[:, 64:80] = 0
    edge = probs[:, :64].sum(-1) / probs.sum(-1)
    for ulps in range(-3, 4):
        drawn = draw(probs, edge * (1 + ulps * 2.0**-52))
        assert bool((probs.gather(1, drawn[:, None]) > 0).all())


def test_frequencies_follow_the_filtered_distribution() -> None:
    n = 20_000
    logits = torch.tensor([1.0, 0.5, 0.0, -1.0, -3.0])
    uniform = torch.from_numpy(uniforms(3, 0, np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64)))
    ids, logp, policy = sample_tokens(
        logits.expand(n, 5).clone(), torch.full((n,), 0.8), uniform, filters(top_k=3, rows=n)
    )
    expected = (logits / 0.8)[:3].softmax(-1)
    share = torch.bincount(ids, minlength=5).double() / n
    assert float(share[3:].sum()) == 0
    error = (expected * (1 - expected) / n).sqrt().double()
    assert bool(((share[:3] - expected).abs() < 4 * error).all())
    torch.testing.assert_close(logp, expected.log()[ids], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy, (logits / 0.8).log_softmax(-1)[ids], rtol=1e-5, atol=1e-5)


def test_greedy_beside_sampled_rows() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 301)
    temperature = torch.tensor([0.0, 1.0, 0.0, 0.5, 2.0, 0.0])
    uniform = torch.full((6,), 0.999, dtype=torch.float64)
    ids, logp, policy = sample_tokens(logits.clone(), temperature, uniform)
    greedy = temperature == 0
    assert torch.equal(ids[greedy], logits.argmax(-1)[greedy])
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    expected = scaled.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(policy, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logp, policy)
