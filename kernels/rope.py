"""Rotary position embedding in the half-split layout of Hugging Face (Su et al., arXiv 2104.09864).

y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin,   x = (x1, x2) halves of a head, angle = position * inv_freq
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, require, settings_for, use_triton

SETTINGS = {"default": {"HEADS": 16, "WARPS": 4}, "interpreter": {"HEADS": 4, "WARPS": 4}}


def rope_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope_reference` as a formula that autograd can differentiate; the same shapes."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """The torch form: rotate x [T, H, D] by cos, sin [T, D/2] -> [T, H, D] in x's dtype, ``out`` if given."""
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    x1, x2 = x[..., :half], x[..., half:]
    out = torch.empty_like(x) if out is None else out
    torch.mul(x1, cos, out=out[..., :half]).sub_(x2 * sin)
    torch.mul(x2, cos, out=out[..., half:]).add_(x1 * sin)
    return out


def full_angles(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D/2] as `rotate_` takes them: [T, 1, D], the sine of the first half negated."""
    return torch.cat([cos, cos], -1).unsqueeze(1), torch.cat([-sin, sin], -1).unsqueeze(1)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] in place by `full_angles`, without gradient: three passes, whatever the layout."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(swapped, sin)


# --- Triton ---


@jit
def rotate_halves(x1, x2, cos_ptr, sin_ptr, row, column, half, INVERSE: tl.constexpr):
    """Halves [heads, HALF] float32, rotated by the angles of a row, or by their negatives if INVERSE."""
    cos = tl.load(cos_ptr + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row * half + column, mask=column < half, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


@jit
def rope_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    heads,
    half,
    x_row,
    x_head,
    y_row,
    INVERSE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Grid (rows, ceil(heads / HEADS)), tile [HEADS, HALF]: y [T, heads, 2 half]; INVERSE: negative angle."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    source = x_ptr + row * x_row + head.to(tl.int64) * x_head + column
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    y1, y2 = rotate_halves(x1, x2, cos_ptr, sin_ptr, row, column, half, INVERSE)
    target = y_ptr + row * y_row + head * (2 * half) + column
    tl.store(target, y1, mask=inside)
    tl.store(target + half, y2, mask=inside)


def _launch(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool, y: Tensor | None = None) -> Tensor:
    """Rows and heads of ``x`` may be strided, and rows of ``y`` (slices of stacked projections)."""
    rows, heads, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if y is None else y
    if y.numel():
        use, half = settings_for(SETTINGS, x.device), width // 2
        constants = {"INVERSE": inverse, "HEADS": use["HEADS"], "HALF": triton.next_power_of_2(half)}
        rope_kernel[(rows, triton.cdiv(heads, use["HEADS"]))](
            *(x, cos.contiguous(), sin.contiguous(), y, heads, half, x.stride(0), x.stride(1), y.stride(0)),
            **constants,
            num_warps=use["WARPS"],
        )
    return y


# --- with gradient ---


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, inverse=True), None, None


class _RotateHeads(torch.autograd.Function):
    """`rotate_heads`; the backward fills one gradient of qkv; autograd would add up padded ones."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k, v = _rotate_heads(qkv, kv_heads, cos, sin)
        return q, k, v.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv = grads
        rows, heads, width = dq.shape
        kv_heads = dk.shape[1]
        dqkv = torch.empty((rows, heads + 2 * kv_heads, width), dtype=dq.dtype, device=dq.device)
        into_q, into_k, into_v = dqkv.split((heads, kv_heads, kv_heads), dim=1)
        cos, sin = ctx.saved_tensors
        _rotate(dq, cos, sin, inverse=True, out=into_q)
        _rotate(dk, cos, sin, inverse=True, out=into_k)
        into_v.copy_(dv)
        return dqkv, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False, out: Tensor | None = None) -> Tensor:
    if runs_triton(x):
        return _launch(x, cos, sin, inverse, out)
    return rope_reference(x, cos, -sin if inverse else sin, out)


def _rotate_heads(qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rotated = qkv.shape[1] - kv_heads
    q, k = _rotate(qkv[:, :rotated], cos, sin).split((rotated - kv_heads, kv_heads), dim=1)
    return q, k, qkv[:, rotated:]


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [T, H, D] by cos, sin [T, D/2] -> [T, H, D] in x's dtype, differentiable in x.

    D is even. Triton computes in float32 and rounds once; float64 stays in torch. Raises KernelError when
    shapes or devices do not match.
    """
    check_rotation("x", x, cos, sin)
    if x.requires_grad and torch.is_grad_enabled():
        return _Rope.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    return _rotate(x, cos, sin)


def rotate_heads(qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rotated q, rotated k, v) of a stacked projection qkv [T, Hq + 2 Hkv, D]; differentiable.

    With gradients v is a copy: a view, once kept for a backward, would keep all of ``qkv``.
    """
    check_rotation("qkv", qkv, cos, sin)
    if qkv.requires_grad and torch.is_grad_enabled():
        return _RotateHeads.apply(qkv, kv_heads, cos, sin)  # type: ignore[no-any-return, no-untyped-call]
    return _rotate_heads(qkv, kv_heads, cos, sin)


def runs_triton(x: Tensor) -> bool:
    """Whether ``x`` runs in kernels that compute in float32: not for float64."""
    return x.dtype != torch.float64 and use_triton(x)


def check_rotation(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise KernelError unless x is [T, H, D] with even D, and cos and sin are [T, D/2] on its device."""
    fits = x.ndim == 3 and x.shape[2] % 2 == 0
    require(fits, name, f"shape {tuple(x.shape)} is not [T, H, D] with even D")
    wanted = f"{(x.shape[0], x.shape[2] // 2)} on {x.device}"
    for other, tensor in (("cos", cos), ("sin", sin)):
        layout = f"{tuple(tensor.shape)} on {tensor.device}"
        require(layout == wanted, other, f"{layout}, not {wanted} for {name} {tuple(x.shape)}")


# --- record ---

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw_angles(
    rows: int, half: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, half] of random angles."""
    angles = torch.rand(rows, half, generator=generator, device=device) * 6.3
    return angles.cos(), angles.sin()


def _case(rows: int, heads: int, width: int) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        x = torch.randn(rows, heads, width, generator=generator, device=device)
        cos, sin = draw_angles(rows, width // 2, generator, device)
        return {"x": x.to(dtype), "cos": cos.to(dtype), "sin": sin.to(dtype)}

    return Case(f"{rows}x{heads}x{width}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(rows, shape.heads + shape.kv_heads, shape.head_dim) for rows in (64, 16384)]


def _launches() -> list[Launch]:
    pointers = dict.fromkeys(("x_ptr", "cos_ptr", "sin_ptr", "y_ptr"), "*bf16")
    types = pointers | dict.fromkeys(("heads", "half", "x_row", "x_head", "y_row"), "i32")
    heads, warps = SETTINGS["default"]["HEADS"], SETTINGS["default"]["WARPS"]
    return [
        Launch(rope_kernel, types, {"INVERSE": inverse, "HEADS": heads, "HALF": half}, warps, 1)
        for half in (32, 64)
        for inverse in (False, True)
    ]


SHAPES = ((1, 1, 2), (3, 5, 6), (2, 4, 34), (5, 9, 16), (0, 2, 8))

ROPE = Op(
    "rope",
    rope,
    rope_formula,
    [_case(*s) for s in SHAPES],
    TOLERANCE,
    bytes=lambda x, cos, sin: 2 * x.nbytes + cos.nbytes + sin.nbytes,
    flops=lambda x, cos, sin: 3 * x.numel(),
    gradients=("x",),
    launches=_launches(),
    timed=_timed_cases,
)
