"""The adapter linear equals its formula, forward and backward, and keeps no base weight between the two."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from proactor.kernels.linear import Linear, exact_linear, library_linear, onednn_linear
from proactor.kernels.lora import Adapter, lora_linear, lora_linear_reference

SHAPES = [
    # rows, inputs, outputs of each target, targets that have an adapter, rank
    (1, 5, (7,), (0,), 1),
    (13, 17, (9, 3, 3), (0, 1, 2), 4),
    (6, 11, (8, 5, 5), (0, 2), 3),
    (31, 33, (15, 15), (1,), 2),
]


def case(shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int], dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    rows, k, widths, targets, rank = shape
    torch.manual_seed(rows)
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    spans = [(edges[t], edges[t + 1]) for t in targets]
    a = torch.randn(rank * len(targets), k, dtype=dtype, requires_grad=True)
    b = [torch.randn(widths[t], rank, dtype=dtype, requires_grad=True) for t in targets]
    x = torch.randn(rows, k, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(edges[-1], k, dtype=dtype), torch.randn(edges[-1], dtype=dtype)
    return x, weight, bias, Adapter(a, b, spans, rank, 1.75)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_the_formula(
    shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int], biased: bool, masked: bool
) -> None:
    x, weight, bias, adapter = case(shape)
    used = bias if biased else None
    mask = (torch.arange(len(x)) % 2).double() if masked else None
    ours = lora_linear(x, lambda: weight, used, adapter, mask)
    theirs = lora_linear_reference(x, weight, used, adapter, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [x, adapter.a, *adapter.b]
    grad = torch.randn_like(ours)
    for mine, reference in zip(torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad)):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_gradient_and_without_adapter(
    shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int],
) -> None:
    x, weight, bias, adapter = case(shape)
    with torch.no_grad():
        expected = lora_linear_reference(x, weight, bias, adapter)
        torch.testing.assert_close(lora_linear(x, lambda: weight, bias, adapter), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(lora_linear(x, lambda: weight, bias), torch.nn.functional.linear(x, weight, bias))
    out = lora_linear(x, lambda: weight, bias)
    (dx,) = torch.autograd.grad(out.sum(), [x])
    torch.testing.assert_close(dx, weight.sum(0).expand_as(x), rtol=1e-12, atol=1e-12)


def test_input_without_gradient_still_trains_the_adapter() -> None:
    """The first layer reads embeddings, which carry none."""
    x, weight, bias, adapter = case(SHAPES[1])
    fixed = x.detach()
    leaves = [adapter.a, *adapter.b]
    ours = torch.autograd.grad(lora_linear(fixed, lambda: weight, bias, adapter).square().sum(), leaves)
    theirs = torch.autograd.grad(lora_linear_reference(fixed, weight, bias, adapter).square().sum(), leaves)
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", [library_linear, onednn_linear, exact_linear])
def test_both_cpu_forms_agree_in_float32(form: Linear) -> None:
    x, weight, bias, adapter = case(SHAPES[1], torch.float32)
    expected = lora_linear_reference(x, weight, bias, adapter)
    out = lora_linear(x, lambda: weight, bias, adapter, None, form)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    leaves = [x, adapter.a, *adapter.b]
    for mine, reference in zip(
        torch.autograd.grad(out.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), leaves)
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-3)


def test_half_precision_input_keeps_float32_factors() -> None:
    x, weight, bias, adapter = case(SHAPES[1], torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    out = lora_linear(half, lambda: weight.bfloat16(), bias.bfloat16(), adapter)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert adapter.a.grad is not None and adapter.a.grad.dtype == torch.float32
    expected = lora_linear_reference(x, weight, bias, adapter)
    assert float(((out.float() - expected).norm() / expected.norm()).detach()) < 2e-2


def test_the_base_weight_is_not_kept_for_the_backward() -> None:
    """A 4-bit base is dequantised at each use: twice a step, and held by nobody in between."""
    x, weight, bias, adapter = case(SHAPES[1])
    made: list[weakref.ref[Tensor]] = []

    def source() -> Tensor:
        fresh = weight.clone()
        made.append(weakref.ref(fresh))
        return fresh

    for low_rank in (adapter, None):
        made.clear()
        out = lora_linear(x, source, bias, low_rank)
        gc.collect()
        assert len(made) == 1 and made[0]() is None
        out.sum().backward()
        assert len(made) == 2
