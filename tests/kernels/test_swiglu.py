"""SwiGLU and its recomputing backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.swiglu import swiglu, swiglu_reference

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
FORMS = ["reference", pytest.param("triton", marks=needs_triton)]


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (17, 66)])
def test_forward_and_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 4).requires_grad_()
    half = shape[1] // 2
    formula = F.silu(x[:, :half]) * x[:, half:]
    ours = swiglu(x)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(formula)
    (expected,) = torch.autograd.grad(formula, [x], grad)
    (mine,) = torch.autograd.grad(ours, [x], grad)
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(swiglu(x), swiglu_reference(x))


@pytest.mark.parametrize("form", FORMS)
def test_extreme_gates_stay_finite(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    x = torch.tensor([[-200.0, 200.0, 0.0, 3.0, -3.0, 5.0]], device=DEVICE, requires_grad=True)
    out = swiglu(x)
    out.sum().backward()
    assert x.grad is not None and bool(torch.isfinite(out).all()) and bool(torch.isfinite(x.grad).all())


def test_half_precision() -> None:
    x = torch.randn(5, 30).bfloat16().requires_grad_()
    out = swiglu(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    expected = swiglu_reference(x.detach().double())
    torch.testing.assert_close(out.double(), expected, rtol=3e-2, atol=1e-2)


@needs_triton
def test_kernel_reads_slices_as_it_reads_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    wide = torch.randn(3, 50, device=DEVICE)
    upstream = torch.randn(3, 1, device=DEVICE).expand(3, 11)
    for part in (wide[:, 5:27], wide.T.contiguous().T[:, 5:27]):
        ours, copy = (
            t.detach().requires_grad_() for t in (part, part.clone(memory_format=torch.contiguous_format))
        )
        assert not ours.is_contiguous() and copy.is_contiguous()
        out, expected = swiglu(ours), swiglu(copy)
        assert torch.equal(out, expected)
        out.backward(upstream)
        expected.backward(upstream.contiguous())
        assert ours.grad is not None and copy.grad is not None and torch.equal(ours.grad, copy.grad)


def test_refuses_another_shape() -> None:
    for bad in (torch.randn(3), torch.randn(2, 3), torch.randn(1, 2, 4)):
        with pytest.raises(KernelError, match=r"^gate_up: "):
            swiglu(bad)
