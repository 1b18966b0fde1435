"""RMSNorm: ``y = w * x / sqrt(mean(x²) + eps)`` over the last dimension, statistics in float32 (Zhang & Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.precision import widen


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in plain torch: x [..., H] any float dtype, weight [H] -> [..., H] in x's dtype."""
    wide = widen(x)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = widen(x)
        rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return weight * (wide * rstd).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        g = widen(grads[0] * weight)
        unit = widen(x) * rstd
        dx = (g - unit * (g * unit).mean(-1, keepdim=True)) * rstd
        return dx.to(x.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm with a frozen weight: x [..., H], weight [H] -> [..., H] in x's dtype; backward in one pass from the saved 1/rms."""
    if x.requires_grad and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
    return rms_norm_reference(x, weight, eps)
