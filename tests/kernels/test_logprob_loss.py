"""The loss inside the head: the gradient of `log_probabilities`, two products per chunk, no logits kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proactor.kernels import logprob
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.logprob import log_probabilities
from proactor.kernels.logprob_loss import autograd_loss, logprob_loss

DEVICE = torch.device("cpu" if interpreted() or not HAS_TRITON else "cuda")
MODES = [
    "reference",
    pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="no triton here")),
]


@pytest.fixture(params=MODES, autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chunks of 3 rows in both forms."""
    monkeypatch.setenv("PROACTOR_KERNELS", request.param)
    monkeypatch.setattr(logprob, "CHUNK_ROWS", 3)
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 3 * 80 * 4)
    return str(request.param)


def problem() -> dict[str, Tensor]:
    torch.manual_seed(0)
    row = torch.tensor([0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 7])
    given = {"hidden": torch.randn(8, 5), "weight": torch.randn(80, 5), "row": row}
    given |= {"target": torch.randint(0, 80, (11,)), "temperature": torch.rand(8) + 0.5}
    return {k: v.to(DEVICE) for k, v in given.items()}


OLD = torch.linspace(-6, -3, 11)
ADVANTAGE = torch.tensor([1.0, -1, 0.5, 2, -2, 1, 0, 1, -1, 0.3, 1])


def clipped(logp: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
    """PPO's clipped loss of some pairs."""
    ratio = (logp - OLD.to(DEVICE)[pairs]).exp()
    advantage = ADVANTAGE.to(DEVICE)[pairs]
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def with_bonus(logp: Tensor, entropy: Tensor, pairs: slice) -> Tensor:
    """The same with an entropy bonus of another weight for each pair."""
    return clipped(logp, entropy, pairs) - 0.1 * entropy * (ADVANTAGE.to(DEVICE)[pairs] + 3)


@pytest.mark.parametrize("loss", [clipped, with_bonus])
def test_equals_the_general_form(loss: Callable[[Tensor, Tensor, slice], Tensor]) -> None:
    given = problem()
    leaf = given["hidden"].requires_grad_()
    logp, entropy = log_probabilities(**given)
    expected = loss(logp, entropy, slice(0, 11)).sum()
    (gradient,) = torch.autograd.grad(2.5 * expected, leaf)
    value, pair_logp, pair_entropy = logprob_loss(**given, loss=autograd_loss(loss))
    assert not pair_logp.requires_grad and not pair_entropy.requires_grad
    (slope,) = torch.autograd.grad(2.5 * value, leaf)
    pairs = ((value, expected), (pair_logp, logp), (pair_entropy, entropy), (slope, gradient))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
    assert float(gradient.abs().max()) > 0.1


def test_one_forward_product_a_chunk_and_no_logits_left() -> None:
    given = problem()
    given["hidden"].requires_grad_()
    alive: list[weakref.ref[Tensor]] = []
    seen: list[slice] = []

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not any(r() is not None for r in alive), "an earlier chunk's logits are still live"
        logits = x @ weight.t()
        alive.append(weakref.ref(logits))
        return logits

    def loss(logp: Tensor, entropy: Tensor, pairs: slice) -> tuple[Tensor, Tensor, None]:
        assert not torch.is_grad_enabled() and len(logp) == pairs.stop - pairs.start
        seen.append(pairs)
        return logp.sum(), torch.ones_like(logp), None

    value, *_ = logprob_loss(**given, loss=loss, linear=linear)
    assert not any(r() is not None for r in alive)
    value.backward()
    assert len(alive) == 3, "the backward computes no logits"
    assert [(s.start, s.stop) for s in seen] == [(0, 4), (4, 9), (9, 11)]


def test_backward_twice_and_without_gradient() -> None:
    given = problem()
    with torch.no_grad():
        plain = logprob_loss(**given, loss=autograd_loss(clipped))
    leaf = given["hidden"].requires_grad_()
    value, logp, _ = logprob_loss(**given, loss=autograd_loss(clipped))
    assert (
        not plain[0].requires_grad and torch.equal(plain[0], value.detach()) and torch.equal(plain[1], logp)
    )
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(value, leaf)[0])


def test_bad_arguments_are_named() -> None:
    given = problem()
    with pytest.raises(KernelError, match="sorted by row"):
        logprob_loss(**given | {"row": given["row"].flip(0)}, loss=autograd_loss(clipped))
