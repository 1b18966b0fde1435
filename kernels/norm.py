"""RMSNorm: ``y = w * x / sqrt(mean(x²) + eps)`` over the last dimension, with statistics in float32.

With a residual, the sum ``s = x + residual`` is formed, returned and normalised in one pass. The backward
keeps only s, from which 1/rms comes again:

    n = s / rms,   g = dy * w,   ds += (g - n * mean(g n)) / rms

Zhang & Sennrich, arXiv 1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, Op, require, use_triton
from proactor.kernels.precision import widen


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in plain torch: x [..., H] of any float dtype, weight [H] -> [..., H] in x's dtype."""
    return weight * _unit(x, eps)[0].to(x.dtype)


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x / rms, 1/rms [..., 1]) in float32 or wider."""
    wide = widen(x)
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide * rstd, rstd


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual) in plain torch."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


# --- Triton ---


@jit
def rms_norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    total_ptr,
    width,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows), tile [BLOCK >= H]: y [T, H] and, with RESIDUAL, x + residual [T, H]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if RESIDUAL:
        other = tl.load(residual_ptr + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + other.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    unit = (wide * rstd).to(y_ptr.dtype.element_ty)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(y_ptr + at, unit.to(tl.float32) * weight.to(tl.float32), mask=inside)


@jit
def rms_norm_backward_kernel(
    total_ptr,
    weight_ptr,
    dy_ptr,
    extra_ptr,
    dx_ptr,
    width,
    eps,
    EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows), tile [BLOCK >= H]: gradient [T, H] of the norm's input; EXTRA: plus the residual's."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    wide = tl.load(total_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    unit = wide * rstd
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32) * weight
    dx = (g - unit * (tl.sum(g * unit, 0) / width)) * rstd
    if EXTRA:
        dx += tl.load(extra_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, dx, mask=inside)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _launch_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y, the normalised input)."""
    width = x.shape[-1]
    x = x.contiguous()
    y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    other = x if residual is None else residual.contiguous()
    block = triton.next_power_of_2(width)
    if x.numel():
        rms_norm_forward_kernel[(x.numel() // width,)](
            x, other, weight, y, total, width, eps, residual is not None, block, num_warps=_warps(block)
        )
    return y, total


def _launch_backward(total: Tensor, weight: Tensor, eps: float, dy: Tensor, extra: Tensor | None) -> Tensor:
    width = total.shape[-1]
    dx, dy = torch.empty_like(total), dy.contiguous()
    other = dy if extra is None else extra.contiguous()
    block = triton.next_power_of_2(width)
    if total.numel():
        rms_norm_backward_kernel[(total.numel() // width,)](
            total, weight, dy, other, dx, width, eps, extra is not None, block, num_warps=_warps(block)
        )
    return dx


# --- with gradient ---


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight)
        return _norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if _runs_triton(x):
            return _launch_backward(x.contiguous(), weight, ctx.eps, grads[0], None), None, None
        g = widen(grads[0] * weight)
        unit, rstd = _unit(x, ctx.eps)
        along = (g * unit).mean(-1, keepdim=True)
        return g.sub_(unit.mul_(along)).mul_(rstd).to(x.dtype), None, None


class _AddRMSNorm(torch.autograd.Function):
    """The Triton form of `add_rms_norm`; on a CPU, autograd's addition and `_RMSNorm` suffice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, total = _launch_forward(x, residual, weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return y, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        dx = _launch_backward(total, weight, ctx.eps, grads[0], grads[1])
        return dx, dx, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm with a frozen weight, differentiable in x: x [..., H], weight [H] -> [..., H] in x's dtype.

    Raises KernelError when the shape or device of ``weight`` does not match.
    """
    _check(x, weight)
    if x.requires_grad and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
    return _norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of ``x + residual``, ``x + residual``), both [..., H] in x's dtype, differentiable in both.

    Raises KernelError when shapes, dtypes or devices differ.
    """
    _check(x, weight)
    require(residual.shape == x.shape, "residual", f"shape {tuple(residual.shape)} beside x {tuple(x.shape)}")
    require(residual.dtype == x.dtype, "residual", f"{residual.dtype} beside x {x.dtype}")
    if not _runs_triton(x):
        total = x + residual
        return rms_norm(total, weight, eps), total
    if torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad):
        return _AddRMSNorm.apply(x, residual, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
    return _launch_forward(x, residual, weight, eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if _runs_triton(x):
        return _launch_forward(x, None, weight, eps)[0]
    return F.rms_norm(x, weight.shape, None, eps).mul_(weight)


def _runs_triton(x: Tensor) -> bool:
    """False for float64 on every device, since the kernels compute in float32."""
    return x.dtype != torch.float64 and use_triton(x)


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.shape == x.shape[-1:] and weight.device == x.device:
        return  # before any message is written
    require(weight.shape == x.shape[-1:], "weight", f"shape {tuple(weight.shape)} for rows of {x.shape[-1:]}")
    require(weight.device == x.device, "weight", f"on {weight.device}, x on {x.device}")


# --- records ---

EPS = 1e-6
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def _case(rows: int, width: int, residual: bool) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        rest = {"residual": draw(rows, width)} if residual else {}
        return {"x": draw(rows, width), **rest, "weight": draw(width), "eps": EPS}

    return Case(f"{rows}x{width}", make)


def _timed_cases(residual: bool) -> Any:
    return lambda shape: [_case(rows, shape.hidden, residual) for rows in (64, 16384)]


def _launches(residual: bool) -> list[Launch]:
    launches = []
    for width in (896, 5120):
        block = 1 << (width - 1).bit_length()
        pointers = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "total_ptr"), "*bf16")
        forward = pointers | {"width": "i32", "eps": "fp32"}
        launches.append(
            Launch(rms_norm_forward_kernel, forward, {"RESIDUAL": residual, "BLOCK": block}, _warps(block), 1)
        )
        pointers = dict.fromkeys(("total_ptr", "weight_ptr", "dy_ptr", "extra_ptr", "dx_ptr"), "*bf16")
        backward = pointers | {"width": "i32", "eps": "fp32"}
        launches.append(
            Launch(rms_norm_backward_kernel, backward, {"EXTRA": residual, "BLOCK": block}, _warps(block), 1)
        )
    return launches


SHAPES = ((1, 8), (3, 7), (5, 64), (2, 130), (0, 16))

RMS_NORM = Op(
    "rms_norm",
    rms_norm,
    rms_norm_reference,
    [_case(*s, False) for s in SHAPES],
    TOLERANCE,
    bytes=lambda x, weight, eps: 2 * x.nbytes + weight.nbytes,
    flops=lambda x, weight, eps: 4 * x.numel(),
    gradients=("x",),
    launches=_launches(False),
    timed=_timed_cases(False),
)
ADD_RMS_NORM = Op(
    "add_rms_norm",
    add_rms_norm,
    add_rms_norm_reference,
    [_case(*s, True) for s in SHAPES],
    TOLERANCE,
    bytes=lambda x, residual, weight, eps: 4 * x.nbytes + weight.nbytes,
    flops=lambda x, residual, weight, eps: 5 * x.numel(),
    gradients=("x", "residual"),
    launches=_launches(True),
    timed=_timed_cases(True),
)
