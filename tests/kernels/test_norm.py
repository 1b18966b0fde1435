"""RMSNorm and its one-pass backward."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels.norm import rms_norm, rms_norm_reference

SHAPES = [(1, 1), (3, 7), (5, 2, 33), (4, 3, 2, 129)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_forward_and_gradient(shape: tuple[int, ...], eps: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64)
    formula = weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    ours, reference = rms_norm(x, weight, eps), rms_norm_reference(x, weight, eps)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference, formula, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(formula)
    (expected,) = torch.autograd.grad(formula, [x], grad)
    (mine,) = torch.autograd.grad(ours, [x], grad)
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_statistics_in_float32(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16."""
    x = (torch.randn(4, 65) * 300).to(dtype)
    weight = torch.randn(65).to(dtype)
    expected = rms_norm_reference(x.double(), weight.double(), 1e-6)
    tolerance = 2e-2 if dtype is torch.bfloat16 else 3e-3
    for out in (rms_norm(x, weight, 1e-6), rms_norm(x.clone().requires_grad_(), weight, 1e-6)):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_forward_is_the_same_with_and_without_gradient() -> None:
    """Sampler and trainer take different branches of one function."""
    x, weight = torch.randn(9, 48), torch.randn(48)
    with torch.no_grad():
        sampled = rms_norm(x, weight, 1e-6)
    assert torch.equal(sampled, rms_norm(x.clone().requires_grad_(), weight, 1e-6))
