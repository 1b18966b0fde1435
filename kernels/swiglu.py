"""SwiGLU: ``y = silu(gate) * up`` for gate and up side by side in one [T, 2I] tensor (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2I] -> [T, I] in its dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_reference(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (dy,) = grads
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        width = gate.shape[-1]
        torch.mul(dy, F.silu(gate), out=out[:, width:])
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=out[:, :width])
        return out


def swiglu(gate_up: Tensor) -> Tensor:
    """Differentiable SwiGLU of gate_up [T, 2I] -> [T, I]; the product is recomputed in the backward instead of kept."""
    if gate_up.requires_grad and torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return, no-untyped-call]
    return swiglu_reference(gate_up)
