"""Advantages in both published conventions, the clipped loss and its gradient, and the k3 estimator."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proactor.kernels.grpo import clipped_loss, group_advantages, kl_k3

rewards = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=9)


@given(rewards)
def test_conventions(values: list[float]) -> None:
    mean = statistics.fmean(values)
    for convention, deviation in (("art", statistics.pstdev(values)), ("verl", statistics.stdev(values))):
        found = group_advantages(values, convention)  # type: ignore[arg-type]
        if len(set(values)) == 1:
            assert found == [0.0] * len(values)
        else:
            assert found == pytest.approx([(v - mean) / (deviation + 1e-6) for v in values], rel=1e-6, abs=1e-6)


def test_a_group_of_one() -> None:
    assert group_advantages([3.0], "art") == [0.0]
    assert group_advantages([3.0], "verl") == [3.0]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_rewards_give_exact_zeros(value: float, count: int) -> None:
    assert group_advantages([value] * count, "art") == [0.0] * count


def by_hand(new: float, old: float, advantage: float, low: float, high: float) -> float:
    ratio = math.exp(new - old)
    return -min(ratio * advantage, max(1 - low, min(1 + high, ratio)) * advantage)


def random_case(count: int = 41) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    new, old = (torch.randn(count, dtype=torch.float64) * 0.4 for _ in range(2))
    return new.requires_grad_(), old, torch.randn(count, dtype=torch.float64), torch.rand(count, dtype=torch.float64)


@pytest.mark.parametrize("low,high", [(0.2, 0.2), (0.2, 0.28), (0.05, 0.5)])
def test_clipped_loss_and_gradient(low: float, high: float) -> None:
    new, old, advantage, weight = random_case()
    loss, clipped = clipped_loss(new, old, advantage, weight, low, high)
    for i in range(len(new)):
        n, o, a, w = (float(t[i]) for t in (new.detach(), old, advantage, weight))
        assert float(loss[i].detach()) == pytest.approx(by_hand(n, o, a, low, high) * w, rel=1e-12)
    (grad,) = torch.autograd.grad(loss.sum(), [new])
    ratio = (new - old).exp().detach()
    binds = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))
    assert bool(binds.any()) and not bool(binds.all())
    assert torch.equal(clipped, binds)
    torch.testing.assert_close(grad, torch.where(binds, 0.0, -ratio * advantage * weight), rtol=1e-12, atol=1e-14)


def test_on_policy_gradient_is_that_of_reinforce() -> None:
    """A ratio of exactly 1 sits between the bounds: nothing is clipped."""
    new, _, advantage, weight = random_case()
    loss, clipped = clipped_loss(new, new.detach(), advantage, weight, 0.2, 0.2)
    assert not bool(clipped.any())
    (grad,) = torch.autograd.grad(loss.sum(), [new])
    torch.testing.assert_close(grad, -advantage * weight, rtol=1e-14, atol=0)


def test_k3_is_never_negative_and_unbiased() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    estimates = kl_k3(p, q)
    assert bool((estimates >= 0).all())
    assert float((p.exp() * estimates).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-10)
    assert float(kl_k3(p, p).abs().max()) == 0
