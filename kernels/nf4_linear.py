"""Linear layer with a frozen NF4 weight: ``y = x Wᵀ + b``, x [..., K], W [N, K], b [N] or None.

For few rows the fused kernel decodes the weight in registers (`PackedNF4`, 0.52 bytes per weight); for many
rows the weight is dequantised once, and the library multiplies. The fused form, with codes q, levels c and
the scale s of a row's block of 64 columns, accumulates in float32:

    yᵀ[n, m] = Σ_block s[n, block] * Σ_k c[q[n, k]] x[m, k]

The product is transposed so that the decoded weight is the operand that tensor cores read from registers, and
the batch is the narrow dimension (16, 32 or 64 rows, not always 64). Levels are rounded to x's dtype and
scales are not: the error is as large as that of rounding ``c * s`` to bfloat16 (2^-9 relative), but the bits
differ. Narrow outputs are also split along K, into float32 parts that are added in a fixed order.

QLoRA: Dettmers et al., arXiv 2305.14314. Splitting K for skinny products: Hoque et al., arXiv 2402.00025.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.jit import interpreted, triton
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_linear_kernels import HALVES, check_linear, fused_nf4_linear, launches
from proactor.kernels.nf4_pack import PackedNF4, repack
from proactor.kernels.nf4_records import draw_nf4
from proactor.kernels.op import Arguments, Case, ModelShape, Op, device_name, require, use_triton

CROSSOVER = {"default": 128}
"""Largest row count of the fused kernel, by device; above, dequantise and multiply.

The default is computed, not measured: memory traffic of 4 bits per weight (fused) against 4 + 16 + 16, at
about 350 TFLOP/s of fused product. Add a row with what `measure_crossover` returns on a GPU.
"""


def nf4_linear_reference(x: Tensor, weight: NF4Tensor | PackedNF4, bias: Tensor | None = None) -> Tensor:
    """`nf4_linear` in plain torch, with the weight dequantised in float32: x [..., K] -> [..., N]."""
    dense = weight.dequantize(torch.float32).to(x.dtype)
    return F.linear(x, dense, None if bias is None else bias.to(x.dtype))


# --- public ---


class _NF4Linear(torch.autograd.Function):
    """No weight gradient; the backward dequantises the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: NF4Tensor | PackedNF4, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        dx = torch.matmul(dy, ctx.weight.dequantize().to(dy.dtype)) if ctx.needs_input_grad[0] else None
        db = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, db


def nf4_linear(x: Tensor, weight: NF4Tensor | PackedNF4, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``, differentiable in x and b: x [..., K] -> [..., N] in x's dtype.

    x float32, float16 or bfloat16; weight [N, K]; bias [N] or None. The fused kernel takes a `PackedNF4` on a
    GPU and 16-bit x of at most `crossover` rows. All else (CPU, float32 x, many rows, an `NF4Tensor`, which
    the kernel cannot read: see `repack`) dequantises to the weight's own dtype, casts to x's, and multiplies.

    Raises KernelError naming the argument when K, devices, dtypes or the bias do not match.
    """
    check_linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _NF4Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, weight, bias)


def _forward(x: Tensor, weight: NF4Tensor | PackedNF4, bias: Tensor | None) -> Tensor:
    rows = math.prod(x.shape[:-1])
    narrow = x.dtype in HALVES or interpreted()
    if isinstance(weight, PackedNF4) and use_triton(x) and narrow and rows <= crossover(x.device):
        y = fused_nf4_linear(x.reshape(rows, x.shape[-1]), weight, bias)
        return y.view(*x.shape[:-1], y.shape[-1])
    return F.linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))


def crossover(device: torch.device) -> int:
    """Largest row count at which `nf4_linear` uses the fused kernel on ``device``."""
    return CROSSOVER.get(device_name(device), CROSSOVER["default"])


def measure_crossover(
    device: torch.device | str = "cuda",
    shape: tuple[int, int] = (5120, 5120),
    dtype: torch.dtype = torch.bfloat16,
    counts: tuple[int, ...] = (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512),
) -> int:
    """Largest row count at which the fused kernel still wins (0: never), for a weight of ``shape`` (N, K).

    Times both forms at each of ``counts`` on a CUDA device (medians, cold L2 cache). Store the result as
    ``CROSSOVER[device_name(device)]``. Raises KernelError for another device.
    """
    device = torch.device(device)
    require(device.type == "cuda", "device", f"{device} is not a CUDA device: nothing to time")
    device = torch.empty(0, device=device).device  # with its index
    generator = torch.Generator(device=device).manual_seed(0)
    weight = repack(draw_nf4(shape, True, generator, device))
    largest = 0
    for count in sorted(counts):
        x = torch.randn(count, shape[1], generator=generator, device=device).to(dtype)
        fused = triton.testing.do_bench(lambda x=x: fused_nf4_linear(x, weight), return_mode="median")
        dense = triton.testing.do_bench(
            lambda x=x: F.linear(x, weight.dequantize(dtype)), return_mode="median"
        )
        if fused > dense:
            break
        largest = count
    return largest


# --- record ---


def _case(m: int, n: int, k: int, nested: bool, biased: bool) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        weight = repack(replace(draw_nf4((n, k), nested, generator, device), dtype=dtype))
        x, bias = (torch.randn(s, generator=generator, device=device).to(dtype) for s in ((m, k), (n,)))
        return {"x": x, "weight": weight, "bias": bias if biased else None}

    return Case(f"{m}x{n}x{k}{'' if nested else ' flat'}{' bias' if biased else ''}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    h, i = shape.hidden, shape.intermediate
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return [
        _case(m, n, k, True, False) for m in (1, 16, 64) for n, k in ((qkv, h), (h, h), (2 * i, h), (h, i))
    ]


CASES = [
    _case(*sizes)
    for sizes in (
        (1, 64, 128, True, False),
        (3, 70, 192, True, True),
        (17, 130, 128, False, True),
        (40, 33, 256, True, False),
        (2, 5, 64, False, False),
        (65, 128, 384, True, True),
        (0, 64, 128, True, True),
        (131, 64, 128, True, True),
    )
]

NF4_LINEAR = Op(
    "nf4_linear",
    nf4_linear,
    nf4_linear_reference,
    CASES,
    {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3},
    bytes=lambda x, weight, bias=None: (
        x.nbytes + weight.nbytes + x.numel() // x.shape[-1] * weight.shape[0] * x.itemsize
    ),
    flops=lambda x, weight, bias=None: 2 * x.numel() * weight.shape[0],
    gradients=("x",),
    launches=launches(),
    timed=_timed_cases,
)
