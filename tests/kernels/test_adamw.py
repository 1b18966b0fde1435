"""AdamW is PyTorch's, to the last float64 digits, and clipping is by the norm of the whole buffer."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels.adamw import adamw, clip_by_norm


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_torch(decay: float, betas: tuple[float, float], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    param = torch.randn(37, dtype=dtype)
    peer = param.clone().requires_grad_()
    optimizer = torch.optim.AdamW([peer], lr=3e-2, betas=betas, eps=1e-6, weight_decay=decay)
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, 8):
        grad = torch.randn(37, dtype=dtype) * 10.0 ** (step - 4)
        peer.grad = grad.clone()
        optimizer.step()
        adamw(param, grad, m, v, step, 3e-2, betas, 1e-6, decay)
        torch.testing.assert_close(param, peer.detach(), rtol=tolerance, atol=tolerance)


def test_zero_gradient_changes_nothing_but_decay() -> None:
    param = torch.ones(3)
    m, v = torch.zeros(3), torch.zeros(3)
    adamw(param, torch.zeros(3), m, v, 1, 0.1)
    assert torch.equal(param, torch.ones(3))
    adamw(param, torch.zeros(3), m, v, 2, 0.1, weight_decay=0.5)
    torch.testing.assert_close(param, torch.full((3,), 0.95))


def test_clipping() -> None:
    grad = torch.tensor([3.0, 4.0])
    assert clip_by_norm(grad, None) == 5 and torch.equal(grad, torch.tensor([3.0, 4.0]))
    assert clip_by_norm(grad, 10.0) == 5 and torch.equal(grad, torch.tensor([3.0, 4.0]))
    assert clip_by_norm(grad, 1.0) == 5
    torch.testing.assert_close(grad, torch.tensor([0.6, 0.8]))


def test_norm_of_large_and_non_finite_gradients() -> None:
    """Squares of 1e20 overflow float32; a NaN must reach the caller, who drops the step."""
    assert clip_by_norm(torch.full((4,), 1e20), None) == pytest.approx(2e20)
    assert clip_by_norm(torch.tensor([1.0, float("nan")]), 1.0) != clip_by_norm(torch.tensor([1.0]), 1.0)
