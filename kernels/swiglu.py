"""SwiGLU: ``y = silu(gate) * up`` for gate and up stacked in one [T, 2I] tensor (Shazeer, arXiv 2002.05202).

Backward, with s = sigmoid(gate):   d_up = dy gate s,   d_gate = dy up s (1 + gate (1 - s))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, require, settings_for, use_triton

SETTINGS = {"default": {"BLOCK": 1024, "WARPS": 4}, "interpreter": {"BLOCK": 64, "WARPS": 4}}


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """SwiGLU in plain torch: gate_up [T, 2I] -> [T, I] in its dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# --- Triton ---


@jit
def swiglu_forward_kernel(x_ptr, y_ptr, width, x_row, BLOCK: tl.constexpr):
    """Grid (rows, ceil(width / BLOCK)), tile [BLOCK]: y [T, width]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_row + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + column, gate * tl.sigmoid(gate) * up, mask=inside)


@jit
def swiglu_backward_kernel(x_ptr, dy_ptr, dx_ptr, width, x_row, dy_row, BLOCK: tl.constexpr):
    """Grid (rows, ceil(width / BLOCK)), tile [BLOCK]: dx [T, 2 width], recomputed from x."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x_ptr + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_row + width + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * dy_row + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    target = dx_ptr + row * (2 * width) + column
    tl.store(target, dy * up * s * (1.0 + gate * (1.0 - s)), mask=inside)
    tl.store(target + width, dy * gate * s, mask=inside)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _launch_forward(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    x = _rows(gate_up)
    y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if y.numel():
        use = settings_for(SETTINGS, x.device)
        grid = (rows, triton.cdiv(width, use["BLOCK"]))
        swiglu_forward_kernel[grid](x, y, width, x.stride(0), use["BLOCK"], num_warps=use["WARPS"])
    return y


def _launch_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    rows, width = dy.shape
    x, dy = _rows(gate_up), _rows(dy)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if dx.numel():
        use = settings_for(SETTINGS, x.device)
        grid = (rows, triton.cdiv(width, use["BLOCK"]))
        swiglu_backward_kernel[grid](
            x, dy, dx, width, x.stride(0), dy.stride(0), use["BLOCK"], num_warps=use["WARPS"]
        )
    return dx


# --- with gradient ---


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _swiglu(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (dy,) = grads
        if _runs_triton(gate_up):
            return _launch_backward(gate_up, dy)
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        width = gate.shape[-1]
        torch.mul(dy, F.silu(gate), out=out[:, width:])
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=out[:, :width])
        return out


def _swiglu(gate_up: Tensor) -> Tensor:
    if _runs_triton(gate_up):
        return _launch_forward(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _runs_triton(x: Tensor) -> bool:
    return x.dtype != torch.float64 and use_triton(x)  # the kernels compute in float32


def swiglu(gate_up: Tensor) -> Tensor:
    """SwiGLU of gate_up [T, 2I] -> [T, I] in its dtype, differentiable; the backward keeps only ``gate_up``.

    Triton computes in float32 and rounds once; float64 stays in torch. Raises KernelError for another shape.
    """
    fits = gate_up.ndim == 2 and gate_up.shape[1] % 2 == 0
    require(fits, "gate_up", f"shape {tuple(gate_up.shape)} is not [T, 2I]")
    if gate_up.requires_grad and torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return, no-untyped-call]
    return _swiglu(gate_up)


# --- record ---

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def _case(rows: int, width: int) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        return {"gate_up": (2 * torch.randn(rows, 2 * width, generator=generator, device=device)).to(dtype)}

    return Case(f"{rows}x{width}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(rows, shape.intermediate) for rows in (64, 16384)]


def _launches() -> list[Launch]:
    block, warps = {"BLOCK": SETTINGS["default"]["BLOCK"]}, SETTINGS["default"]["WARPS"]
    forward = {"x_ptr": "*bf16", "y_ptr": "*bf16", "width": "i32", "x_row": "i32"}
    backward = dict.fromkeys(("x_ptr", "dy_ptr", "dx_ptr"), "*bf16")
    backward |= dict.fromkeys(("width", "x_row", "dy_row"), "i32")
    return [
        Launch(swiglu_forward_kernel, forward, block, warps, 1),
        Launch(swiglu_backward_kernel, backward, block, warps, 1),
    ]


SHAPES = ((1, 1), (3, 7), (2, 64), (5, 129), (0, 16))

SWIGLU = Op(
    "swiglu",
    swiglu,
    swiglu_reference,
    [_case(*s) for s in SHAPES],
    TOLERANCE,
    bytes=lambda gate_up: gate_up.nbytes * 3 // 2,
    flops=lambda gate_up: 5 * gate_up.numel() // 2,
    gradients=("gate_up",),
    launches=_launches(),
    timed=_timed_cases,
)
