"""Rotation of half-split heads is multiplication by a unit complex number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.rope import full_angles, rope, rope_formula, rope_reference, rotate_, rotate_heads

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
SHAPES = [(1, 1, 2), (5, 3, 6), (7, 2, 34), (3, 9, 128)]


def angles(rows: int, half: int) -> Tensor:
    return torch.outer(torch.arange(rows, dtype=torch.float64) * 3.7, 10000.0 ** (-torch.arange(half) / half))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_place_on_a_part_of_a_projection(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, heads, width = shape
    theta = angles(rows, width // 2).float()
    qkv = torch.randn(rows, heads + 2, width)
    expected, rest = rope_reference(qkv[:, :heads], theta.cos(), theta.sin()), qkv[:, heads:].clone()
    rotate_(qkv[:, :heads], *full_angles(theta.cos(), theta.sin()))
    torch.testing.assert_close(qkv[:, :heads], expected)
    assert torch.equal(qkv[:, heads:], rest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1.0, 1.139])
def test_rotation_and_gradient(shape: tuple[int, int, int], factor: float) -> None:
    """``factor`` is what yarn multiplies cos and sin by: the gradient is the transpose, not the inverse."""
    torch.manual_seed(0)
    half = shape[-1] // 2
    theta = angles(shape[0], half)
    cos, sin = theta.cos() * factor, theta.sin() * factor
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    turned = (
        torch.complex(x[..., :half], x[..., half:])
        * torch.polar(torch.full_like(theta, factor), theta)[:, None]
    )
    formula = torch.cat([turned.real, turned.imag], -1)
    ours = rope(x, cos, sin)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(formula)
    (expected,) = torch.autograd.grad(formula, [x], grad)
    (mine,) = torch.autograd.grad(ours, [x], grad)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(rope(x, cos, sin), rope_reference(x, cos, sin))


def test_layout_is_that_of_transformers() -> None:
    theta = angles(6, 8).float()
    q, k = torch.randn(6, 4, 16), torch.randn(6, 2, 16)
    cos, sin = (torch.cat([t, t], -1)[None] for t in (theta.cos(), theta.sin()))
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for mine, reference in zip((q, k), expected, strict=True):
        out = rope(mine, theta.cos(), theta.sin())
        torch.testing.assert_close(out, reference[0].transpose(0, 1), rtol=1e-6, atol=1e-6)


def test_scores_depend_on_distance_alone() -> None:
    theta = angles(12, 4)
    q, k = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        at = [rope(t, theta[p : p + 1].cos(), theta[p : p + 1].sin()) for t, p in ((q, i), (k, j))]
        return float((at[0] * at[1]).sum())

    assert score(11, 7) == pytest.approx(score(4, 0), abs=1e-12)


@needs_triton
@pytest.mark.parametrize("order", ["rows", "heads", "columns"])
def test_kernel_reads_slices_as_it_reads_copies(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a stacked projection, as in the engine, and a gradient expanded from one number."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    theta = angles(3, 5).float().to(DEVICE)
    stacked = torch.randn(3, 7, 10, device=DEVICE)
    if order == "heads":
        stacked = stacked.transpose(0, 1).contiguous().transpose(0, 1)
    if order == "columns":
        stacked = stacked.transpose(0, 2).contiguous().transpose(0, 2)
    part = stacked[:, :5]
    assert not part.is_contiguous()
    assert torch.equal(
        rope(part, theta.cos(), theta.sin()), rope(part.contiguous(), theta.cos(), theta.sin())
    )
    part = part.detach().requires_grad_()
    rope(part, theta.cos(), theta.sin()).sum().backward()
    expected = rope_formula(torch.ones(3, 5, 10, device=DEVICE), theta.cos(), -theta.sin())
    assert part.grad is not None
    torch.testing.assert_close(part.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["reference", pytest.param("triton", marks=needs_triton)])
def test_rotated_heads_have_the_gradient_of_their_slices(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what autograd adds up from the slices of a stacked projection."""
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    theta = angles(3, 5).float().to(DEVICE)
    qkv = torch.randn(3, 9, 10, device=DEVICE, requires_grad=True)
    ours = rotate_heads(qkv, 2, theta.cos(), theta.sin())
    rotated = rope(qkv[:, :7], theta.cos(), theta.sin())
    slices = (rotated[:, :5], rotated[:, 5:], qkv[:, 7:])
    seeds = [torch.randn_like(x) for x in slices]
    for mine, theirs in zip(ours, slices, strict=True):
        assert torch.equal(mine, theirs)
    (mine,), (theirs,) = (torch.autograd.grad(outputs, [qkv], seeds) for outputs in (ours, slices))
    assert torch.equal(mine, theirs)
    storage = qkv.untyped_storage().data_ptr()
    assert ours[2].untyped_storage().data_ptr() != storage  # a view would keep all of qkv
    with torch.no_grad():
        assert rotate_heads(qkv, 2, theta.cos(), theta.sin())[2].untyped_storage().data_ptr() == storage


@needs_triton
def test_float64_stays_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    theta, x = angles(4, 3).to(DEVICE), torch.randn(4, 2, 6, dtype=torch.float64, device=DEVICE)
    expected = rope_formula(x, theta.cos(), theta.sin())
    torch.testing.assert_close(rope(x, theta.cos(), theta.sin()), expected, rtol=1e-14, atol=1e-14)


def test_refuses_what_does_not_fit() -> None:
    x, half = torch.randn(4, 2, 6), torch.ones(4, 3)
    for bad, cos, sin, name in (
        (x[0], half, half, "x"),
        (x[..., :5], half, half, "x"),
        (x, half[:3], half, "cos"),
        (x, half, half[:1], "sin"),
    ):
        with pytest.raises(KernelError, match=f"^{name}: "):
            rope(bad, cos, sin)
