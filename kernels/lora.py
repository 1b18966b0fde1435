"""Linear layer with a frozen base weight and low-rank adapters on spans of its output.

    y = x Wᵀ + b,   y[:, span_i] += s_i * m * (x A_iᵀ) B_iᵀ

x [T, K]; W [N, K] frozen; s_i, m, A_i and B_i as in `kernels.lora_update`, which adds them. Without gradient
there may be several adapters, each with its own m. No weight gradient of the base is formed:

    g_i = s_i * m * (dy[:, span_i] B_i),   dx = dy W + Σ g_i A_i
    dA_i = g_iᵀ x,   dB_i = dy[:, span_i]ᵀ (s_i * m * x A_iᵀ)

The backward needs x, the widest of a layer's activations. Where x is cheap to compute from a tensor that is
kept for another backward (a norm's input, the stacked gate and up), `Remade` names both, and x is not kept.

For few rows the base product may stay 4-bit (`nf4_linear`); large ones go to the library. LoRA: Hu et al.,
arXiv 2106.09685; a frozen 4-bit base: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.linear import Linear, library_linear
from proactor.kernels.lora_update import Adapter, add_update, add_without_gradient, check_adapter, fused
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_cpu import HostNF4, host_back, host_linear
from proactor.kernels.nf4_linear import nf4_linear
from proactor.kernels.nf4_pack import PackedNF4
from proactor.kernels.op import require
from proactor.kernels.ordered import OrderedWeight, ordered_back, ordered_linear


@dataclass(slots=True)
class Remade:
    """How the backward gets a linear's input again: ``make(kept)`` without gradient, the same bits."""

    kept: Tensor
    make: Callable[[Tensor], Tensor]


Weight = Tensor | NF4Tensor | PackedNF4 | HostNF4 | OrderedWeight
WeightSource = Callable[[], Weight]


def _base(x: Tensor, weight: Weight, bias: Tensor | None, linear: Linear) -> Tensor:
    if isinstance(weight, HostNF4):
        return host_linear(x, weight, bias, linear)
    if isinstance(weight, OrderedWeight):
        return ordered_linear(x, weight, bias)
    return linear(x, weight, bias) if isinstance(weight, Tensor) else nf4_linear(x, weight, bias)


def _base_back(dy: Tensor, weight: Weight, linear: Linear) -> Tensor:
    if isinstance(weight, HostNF4):
        return host_back(dy, weight, linear)
    if isinstance(weight, OrderedWeight):
        return ordered_back(dy, weight, linear)
    dense = weight if isinstance(weight, Tensor) else weight.dequantize().to(dy.dtype)
    return linear(dy, dense.t(), None)


def _forward(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    adapter: Adapter,
    row_mask: Tensor | None,
    linear: Linear,
) -> tuple[Tensor, Tensor]:
    """(y, x Aᵀ for the backward, as `add_update` returns it)."""
    check_adapter(x, adapter, row_mask, linear)
    y = _base(x, weight, bias, linear)
    return y, add_update(x, y, adapter, row_mask, linear, True)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        source: WeightSource,
        bias: Tensor | None,
        adapter: Adapter,
        row_mask: Tensor | None,
        linear: Linear,
        remade: Remade | None,
        a: Tensor,
        *b: Tensor,
    ) -> Tensor:
        y, xa = _forward(x, source(), bias, adapter, row_mask, linear)
        ctx.plain = fused(x, adapter, linear)
        ctx.save_for_backward(x if remade is None else remade.kept, xa, row_mask, a, *b)
        ctx.source, ctx.adapter, ctx.linear = source, adapter, linear
        ctx.make = None if remade is None else remade.make
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, xa, row_mask, a, *b = ctx.saved_tensors
        if ctx.make is not None:
            x = ctx.make(x)
        adapter: Adapter = ctx.adapter
        if ctx.plain:  # of one scale: `fused`
            xa = xa * adapter.scales[0]
            if row_mask is not None:
                xa *= row_mask.unsqueeze(1)
        g = torch.empty_like(xa)
        db = []
        targets = zip(b, adapter.spans, adapter.parts(g), adapter.parts(xa), strict=True)
        for factor, (start, stop), slope, low in targets:
            part = dy[:, start:stop]
            torch.mm(part, factor.to(x.dtype), out=slope)
            db.append(torch.mm(part.t(), low).to(factor.dtype))
        adapter.gate(g, row_mask)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _base_back(dy, ctx.source(), ctx.linear)
            dx.addmm_(g, a.to(x.dtype))
        da = torch.mm(g.t(), x).to(a.dtype)
        return (dx, None, None, None, None, None, None, da, *db)


class _FrozenLinear(torch.autograd.Function):
    """The base alone: no weight gradient, and the backward fetches the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: WeightSource, bias: Tensor | None, linear: Linear) -> Tensor:
        ctx.source, ctx.linear = source, linear
        return _base(x, source(), bias, linear)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _base_back(grads[0], ctx.source(), ctx.linear), None, None, None


def lora_linear(
    x: Tensor,
    source: WeightSource,
    bias: Tensor | None = None,
    adapter: Adapter | None = None,
    row_mask: Tensor | None = None,
    linear: Linear = library_linear,
    remade: Remade | None = None,
    others: Sequence[tuple[Adapter, Tensor | None]] = (),
) -> Tensor:
    """Frozen linear layer with an optional adapter: x [T, K] -> [T, N] in x's dtype, differentiable.

    ``source`` returns the base weight [N, K] on each call: a dense tensor (dequantised on the fly, so that a
    4-bit base is never kept in full precision between forward and backward), an `NF4Tensor` or `PackedNF4`,
    which `nf4_linear` multiplies, a `HostNF4` (`host_linear`) or an `OrderedWeight`. ``row_mask`` [T]: 1 for
    rows that use the adapter, else 0. ``remade``: how the backward computes x again; None keeps x.
    ``others``: more adapters, each with its ``row_mask``; then nothing is differentiable.

    The Triton form takes one rank up to 64 and one scale; others take the torch form. It raises KernelError
    naming the argument when shapes or devices do not match, or spans overlap.
    """
    row_mask = _switch(row_mask, x)
    if adapter is None:
        require(not others, "adapter", "None, beside others")
        if x.requires_grad:
            return _FrozenLinear.apply(x, source, bias, linear)  # type: ignore[no-any-return, no-untyped-call]
        return _base(x, source(), bias, linear)
    if not torch.is_grad_enabled():
        return _without_gradient(x, source(), bias, [(adapter, row_mask), *others], linear)
    require(not others, "others", "several adapters in one product have no gradient")
    return _LoRALinear.apply(x, source, bias, adapter, row_mask, linear, remade, adapter.a, *adapter.b)  # type: ignore[no-any-return, no-untyped-call]


def _switch(row_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask in x's dtype: 0 and 1 are exact, and a wider one would widen the products."""
    return None if row_mask is None else row_mask.to(x.dtype)


def _without_gradient(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    adapters: Sequence[tuple[Adapter, Tensor | None]],
    linear: Linear,
) -> Tensor:
    """The base, and on top the part of each adapter."""
    for adapter, row_mask in adapters:
        check_adapter(x, adapter, row_mask, linear)
    y = _base(x, weight, bias, linear)
    for adapter, row_mask in adapters:
        add_without_gradient(x, y, adapter, _switch(row_mask, x), linear)
    return y


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter, row_mask: Tensor | None = None
) -> Tensor:
    """`lora_linear` in plain torch, differentiable by autograd; the weight [N, K] is dense."""
    delta = torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    gate = 1.0 if row_mask is None else row_mask.unsqueeze(1)
    factors = adapter.a.split(list(adapter.ranks))
    for a, factor, (start, stop), scale in zip(
        factors, adapter.b, adapter.spans, adapter.scales, strict=True
    ):
        update = scale * gate * (x @ a.t().to(x.dtype)) @ factor.t().to(x.dtype)
        delta = delta + torch.nn.functional.pad(update, (start, weight.shape[0] - stop))
    return torch.nn.functional.linear(x, weight, bias) + delta
