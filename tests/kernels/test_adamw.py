"""AdamW is PyTorch's, to the last float64 digits, and clipping is by the norm of the whole buffer."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels.adamw import adamw, clip_by_norm, clipped_adamw
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
FORMS = ["reference", pytest.param("triton", marks=needs_triton)]


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


def draw(count: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(count, device=DEVICE) for _ in range(3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_many_clipped_steps_equal_torch(
    form: str, max_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    torch.manual_seed(0)
    param = torch.randn(300, device=DEVICE)
    peer = param.clone().requires_grad_()
    optimizer = torch.optim.AdamW([peer], lr=3e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, 8):
        grad = torch.randn(300, device=DEVICE) * 10.0 ** (step - 4)
        norm = float(grad.double().norm())
        peer.grad = grad * min(1.0, max_norm / norm) if max_norm else grad.clone()
        optimizer.step()
        measured = clipped_adamw(param, grad, m, v, step, 3e-2, (0.8, 0.95), 1e-6, 0.1, max_norm)
        assert measured.dtype == torch.float64 and float(measured) == pytest.approx(norm, rel=1e-12)
        torch.testing.assert_close(param, peer.detach(), rtol=3e-6, atol=3e-6)


def test_torch_form_is_the_two_functions_it_joins() -> None:
    torch.manual_seed(1)
    grad, *rest = torch.randn(40), torch.randn(40), torch.randn(40), torch.rand(40)
    mine, theirs = ([t.clone() for t in (rest[0], grad, *rest[1:])] for _ in range(2))
    norm = clip_by_norm(theirs[1], 0.5)
    adamw(*theirs, 4, 0.1, weight_decay=0.2)  # type: ignore[arg-type, misc]
    assert float(clipped_adamw(*mine, 4, 0.1, weight_decay=0.2, max_norm=0.5)) == norm  # type: ignore[arg-type, misc]
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 200, 299])
def test_a_gradient_that_is_not_finite_changes_nothing_and_shows(
    form: str, max_norm: float | None, bad: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    param, grad, m = draw(300)
    v = param.square()
    before = [t.clone() for t in (param, m, v)]
    grad[place] = bad
    norm = clipped_adamw(param, grad, m, v, 1, 0.1, weight_decay=0.1, max_norm=max_norm)
    assert not bool(torch.isfinite(norm))
    assert all(torch.equal(a, b) for a, b in zip(before, (param, m, v), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_squares_do_not_overflow(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    param, grad, m = (
        torch.zeros(4, device=DEVICE),
        torch.full((4,), 1e20, device=DEVICE),
        torch.zeros(4, device=DEVICE),
    )
    norm = clipped_adamw(param, grad, m, m.clone(), 1, 0.1, max_norm=1.0)
    assert float(norm) == pytest.approx(2e20)
    torch.testing.assert_close(param, torch.full((4,), -0.1, device=DEVICE))


@needs_triton
def test_gaps_and_other_types_take_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    for every, dtype in ((2, torch.float32), (1, torch.float64)):
        param, grad, m, v = (torch.rand(10, device=DEVICE, dtype=dtype)[::every] for _ in range(4))
        want = [t.clone().double() for t in (param, grad, m, v)]
        adamw(param, grad, m, v, 2, 0.1)
        adamw(*want, 2, 0.1)  # type: ignore[arg-type, misc]
        torch.testing.assert_close(param.double(), want[0], rtol=1e-6 if every == 2 else 1e-14, atol=1e-7)


def test_refuses_what_does_not_fit() -> None:
    p = torch.zeros(3)
    for arguments, name in (
        ((p, p[:2], p, p, 1), "grad"),
        ((p, p, p, p[:1], 1), "v"),
        ((p, p, p, p, 0), "step"),
    ):
        for form in (adamw, clipped_adamw):
            with pytest.raises(KernelError, match=f"^{name}: "):
                form(*arguments, 0.1)  # type: ignore[operator]
    with pytest.raises(KernelError, match=r"^max_norm: "):
        clipped_adamw(p, p, p, p, 1, 0.1, max_norm=0.0)
