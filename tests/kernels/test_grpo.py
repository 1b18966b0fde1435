"""Advantages in both published conventions, the clipped loss and its gradient, and the k3 estimator."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proactor.kernels import grpo
from proactor.kernels.errors import KernelError
from proactor.kernels.grpo import STATISTICS, clipped_loss, group_advantages, kl_k3, policy_loss
from proactor.kernels.jit import HAS_TRITON, interpreted

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
FORMS = ["reference", pytest.param("triton", marks=needs_triton)]

rewards = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=9)


@given(rewards)
def test_conventions(values: list[float]) -> None:
    mean = statistics.fmean(values)
    for convention, deviation in (("art", statistics.pstdev(values)), ("verl", statistics.stdev(values))):
        advantages = group_advantages(values, convention)  # type: ignore[arg-type]
        if len(set(values)) == 1:
            assert advantages == [0.0] * len(values)
        else:
            assert advantages == pytest.approx(
                [(v - mean) / (deviation + 1e-6) for v in values], rel=1e-6, abs=1e-6
            )


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
    return (
        new.requires_grad_(),
        old,
        torch.randn(count, dtype=torch.float64),
        torch.rand(count, dtype=torch.float64),
    )


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
    torch.testing.assert_close(
        grad, torch.where(binds, 0.0, -ratio * advantage * weight), rtol=1e-12, atol=1e-14
    )


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


def tokens(count: int = 41) -> dict[str, Tensor]:
    torch.manual_seed(5)
    arguments = {"new": torch.randn(count) - 2, "advantage": torch.randn(count), "weight": torch.rand(count)}
    arguments |= {
        "old": arguments["new"] + torch.randn(count) * 0.3,
        "reference": arguments["new"] + torch.randn(count) * 0.3,
    }
    return {k: v.to(DEVICE) for k, v in arguments.items()}


@pytest.mark.parametrize("form", FORMS)
def test_policy_loss_joins_the_parts(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch to the last bit: what the engine computed from the parts."""
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    given = tokens()
    mine, theirs = (given["new"].clone().requires_grad_() for _ in range(2))
    loss, statistics = policy_loss(**{**given, "new": mine}, epsilon_low=0.1, epsilon_high=0.3, beta=0.2)
    expected, clipped = clipped_loss(theirs, given["old"], given["advantage"], given["weight"], 0.1, 0.3)
    kl = kl_k3(theirs, given["reference"])
    expected = expected + 0.2 * kl * given["weight"]
    upstream = torch.rand(41, device=DEVICE)
    (grad,) = torch.autograd.grad(loss, [mine], upstream)
    (wanted,) = torch.autograd.grad(expected, [theirs], upstream)
    tolerance = 0.0 if form == "reference" else 2e-6
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=tolerance)
    error = (given["new"] - given["old"]).expm1().abs().max()
    by_name = dict(zip(STATISTICS, statistics.tolist(), strict=True))
    assert 0 < by_name["clipped"] == float(clipped.sum()) < by_name["tokens"] == 41
    assert by_name["loss"] == pytest.approx(float(expected.detach().double().sum()), rel=1e-5)
    assert by_name["kl"] == pytest.approx(float(kl.detach().double().sum()), rel=1e-5)
    assert by_name["ratio_error"] == pytest.approx(float(error), rel=1e-5)
    assert statistics.dtype == torch.float64 and not statistics.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_a_ratio_that_overflows_has_no_gradient_where_nothing_moves(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the clip binds, and at advantage 0."""
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    new = torch.tensor([-1.0, -1.0, -1.0], device=DEVICE, requires_grad=True)
    old = torch.tensor([-100.0, -100.0, -1.0], device=DEVICE)
    advantage, weight = torch.tensor([1.0, 0.0, 2.0], device=DEVICE), torch.ones(3, device=DEVICE)
    loss, _ = policy_loss(new, old, advantage, weight)
    (grad,) = torch.autograd.grad(loss.sum(), [new])
    assert loss.tolist() == pytest.approx([-1.2, 0.0, -2.0]) and grad.tolist() == [0.0, 0.0, -2.0]


@needs_triton
def test_policy_loss_repeats_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    first, second = (policy_loss(**tokens(100), beta=0.1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_triton
def test_on_policy_ratio_is_exactly_one_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clip bounds of 0 then bind nowhere, and the gradient is that of REINFORCE, to the bit."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    given = tokens()
    new = given["new"].requires_grad_()
    loss, statistics = policy_loss(new, new.detach(), given["advantage"], given["weight"], None, 0.0, 0.0)
    (grad,) = torch.autograd.grad(loss.sum(), [new])
    assert torch.equal(grad, -(given["advantage"] * given["weight"]))
    assert statistics.tolist()[1:4] == [0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["new", "old", "advantage", "weight", "reference"])
@pytest.mark.parametrize("place", [0, 33])
def test_nan_shows_in_its_token_and_in_the_sum(
    form: str, name: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    given = tokens()
    given[name][place] = float("nan")
    loss, statistics = policy_loss(**given, beta=0.1)
    assert loss.isnan().nonzero().tolist() == [[place]]
    assert bool(statistics[0].isnan())
    assert bool(statistics[3].isnan()) == (name in ("new", "old"))


@needs_triton
def test_a_clipped_ratio_beyond_float32_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's chain rule gives 0 times infinity there."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    new = torch.zeros(2, device=DEVICE, requires_grad=True)
    one = torch.ones(2, device=DEVICE)
    loss, statistics = policy_loss(new, torch.tensor([-200.0, 0.0], device=DEVICE), one, one)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-1.2, -1.0])
    assert new.grad is not None and new.grad.tolist() == [0.0, -1.0]
    assert float(statistics[3]) == math.inf


def test_policy_loss_refuses_what_does_not_fit() -> None:
    given = {k: v.cpu() for k, v in tokens(4).items()}
    wrong = {
        "old": given["old"][:3],
        "advantage": given["advantage"][:, None],
        "weight": given["weight"].requires_grad_(),
        "reference": given["reference"][None],
    }
    for name, tensor in wrong.items():
        with pytest.raises(KernelError, match=f"^{name}: "):
            policy_loss(**{**given, "weight": given["weight"].detach(), name: tensor})
    with pytest.raises(KernelError, match=r"^new: "):
        policy_loss(**{k: v[None] for k, v in given.items()})


@needs_triton
def test_policy_loss_of_other_types_stays_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of a float64 model beside float32 advantages."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    monkeypatch.setattr(
        grpo, "_PolicyLoss", None
    )  # the interpreter would not show it: its kernels compute in float64 if they are given that
    given = tokens()
    given |= {k: given[k].double() for k in ("new", "old", "reference")}
    loss, _ = policy_loss(**given, beta=0.1)
    expected = clipped_loss(
        given["new"], given["old"], given["advantage"].double(), given["weight"].double(), 0.2, 0.2
    )
    kl = 0.1 * kl_k3(given["new"], given["reference"]) * given["weight"].double()
    torch.testing.assert_close(loss, expected[0] + kl, rtol=1e-13, atol=1e-13)
