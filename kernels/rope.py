"""Rotary position embedding in the half-split layout of Hugging Face (Su et al., arXiv 2104.09864).

y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin,   x = (x1, x2) halves of a head, angle = position * inv_freq
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] by cos, sin [T, D/2] -> [T, H, D] in x's dtype."""
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    x1, x2 = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(x1, cos, out=out[..., :half]).sub_(x2 * sin)
    torch.mul(x2, cos, out=out[..., half:]).add_(x1 * sin)
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rope_reference(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rope_reference(grads[0], cos, -sin), None, None


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Differentiable rotation; the gradient is the rotation by the negative angle. Shapes as in `rope_reference`."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Rope.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    return rope_reference(x, cos, sin)
