"""Linear layer with a frozen base weight and low-rank adapters on spans of its output.

    y = x Wᵀ + b,   y[:, span_i] += scale * m * (x A_iᵀ) B_iᵀ

x [T, K], W [N, K] frozen, the A_i stacked into one [t*r, K] (one product for q, k and v, or gate and up), B_i [n_i, r] float32,
m [T] or None switches the adapter per row. The backward never forms a weight gradient for the base:

    g_i = scale * m * (dy[:, span_i] B_i);  dx = dy W + Σ g_i A_i;  dA_i = g_iᵀ x;  dB_i = dy[:, span_i]ᵀ (scale * m * x A_iᵀ)

LoRA: Hu et al., arXiv 2106.09685, with the QLoRA reading of a frozen 4-bit base (arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.linear import Linear, exact_linear, library_linear


@dataclass(slots=True)
class Adapter:
    """Low-rank factors of one (possibly fused) linear: ``a`` [t*r, K], ``b`` one [n_i, r] a target, ``spans`` its output columns."""

    a: Tensor
    b: Sequence[Tensor]
    spans: Sequence[tuple[int, int]]
    rank: int
    scale: float


WeightSource = Callable[[], Tensor]


def _delta(
    xa: Tensor, y: Tensor, b: Sequence[Tensor], spans: Sequence[tuple[int, int]], rank: int, linear: Linear
) -> None:
    for i, (factor, (start, stop)) in enumerate(zip(b, spans, strict=True)):
        part = xa[:, i * rank : (i + 1) * rank]
        # the library's product in place is faster, but its rows depend on how many there are
        if linear is exact_linear:
            y[:, start:stop] += linear(part.contiguous(), factor, None)
        else:
            y[:, start:stop].addmm_(part, factor.t())


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter, row_mask: Tensor | None, linear: Linear
) -> tuple[Tensor, Tensor]:
    y = linear(x, weight, bias)
    xa = linear(x, adapter.a.to(x.dtype), None) * adapter.scale
    if row_mask is not None:
        xa = xa * row_mask.unsqueeze(1)
    _delta(xa, y, [b.to(x.dtype) for b in adapter.b], adapter.spans, adapter.rank, linear)
    return y, xa


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
        a: Tensor,
        *b: Tensor,
    ) -> Tensor:
        y, xa = _forward(x, source(), bias, adapter, row_mask, linear)
        ctx.save_for_backward(x, xa, row_mask, a, *b)
        ctx.source, ctx.adapter, ctx.linear = source, adapter, linear
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, xa, row_mask, a, *b = ctx.saved_tensors
        adapter: Adapter = ctx.adapter
        rank = adapter.rank
        g = torch.empty_like(xa)
        db = []
        for i, (factor, (start, stop)) in enumerate(zip(b, adapter.spans, strict=True)):
            part = dy[:, start:stop]
            torch.mm(part, factor.to(x.dtype), out=g[:, i * rank : (i + 1) * rank])
            db.append(torch.mm(part.t(), xa[:, i * rank : (i + 1) * rank]).to(factor.dtype))
        g *= adapter.scale
        if row_mask is not None:
            g *= row_mask.unsqueeze(1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ctx.linear(dy, ctx.source().t(), None)
            dx.addmm_(g, a.to(x.dtype))
        da = torch.mm(g.t(), x).to(a.dtype)
        return (dx, None, None, None, None, None, da, *db)


class _FrozenLinear(torch.autograd.Function):
    """Base linear alone: the gradient passes through, the weight gets none and is fetched again instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: WeightSource, bias: Tensor | None, linear: Linear) -> Tensor:
        ctx.source, ctx.linear = source, linear
        return linear(x, source(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.linear(grads[0], ctx.source().t(), None), None, None, None


def lora_linear(
    x: Tensor,
    source: WeightSource,
    bias: Tensor | None = None,
    adapter: Adapter | None = None,
    row_mask: Tensor | None = None,
    linear: Linear = library_linear,
) -> Tensor:
    """Frozen linear with adapter: x [T, K] -> [T, N] in x's dtype.

    ``source`` returns the base weight [N, K] each time it is called (a dense tensor, or an NF4 one dequantised on the fly), so that a 4-bit
    base is never kept in full precision between forward and backward. ``row_mask`` [T] holds 1 for rows that use the adapter, 0 for those that do not.
    """
    if adapter is None:
        return _FrozenLinear.apply(x, source, bias, linear) if x.requires_grad else linear(x, source(), bias)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled():
        return _LoRALinear.apply(x, source, bias, adapter, row_mask, linear, adapter.a, *adapter.b)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, source(), bias, adapter, row_mask, linear)[0]


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter, row_mask: Tensor | None = None
) -> Tensor:
    """The formula in plain torch, differentiable by autograd: the check for `lora_linear`."""
    delta = torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype)
    gate = 1.0 if row_mask is None else row_mask.unsqueeze(1)
    for i, (factor, (start, stop)) in enumerate(zip(adapter.b, adapter.spans, strict=True)):
        a = adapter.a[i * adapter.rank : (i + 1) * adapter.rank]
        update = adapter.scale * gate * (x @ a.t().to(x.dtype)) @ factor.t().to(x.dtype)
        delta = delta + torch.nn.functional.pad(update, (start, weight.shape[0] - stop))
    return torch.nn.functional.linear(x, weight, bias) + delta
