"""Records of NF4 quantisation and dequantisation.

Their references are the torch forms, which tests compare with bitsandbytes bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proactor.kernels.nf4 import (
    BLOCK,
    FLOATS,
    NESTED_BLOCK,
    NF4_CODE,
    NF4Tensor,
    dequantize_nf4,
    dequantize_torch,
    dynamic_code,
    quantize_nf4,
    quantize_torch,
)
from proactor.kernels.nf4_kernels import launches_dequantize, launches_quantize
from proactor.kernels.op import Arguments, Case, ModelShape, Op

EXACT = dict.fromkeys(FLOATS, 0.0)


def draw_nf4(
    shape: tuple[int, int], nested: bool, generator: torch.Generator, device: torch.device
) -> NF4Tensor:
    """An `NF4Tensor` of random codes and scales, without quantising anything."""
    size = math.prod(shape)
    blocks = -(-size // BLOCK)
    draw = {"generator": generator, "device": device}
    packed = torch.randint(0, 256, ((size + 1) // 2,), dtype=torch.uint8, **draw)  # type: ignore[call-overload]
    code = NF4_CODE.to(device)
    if not nested:
        absmax = torch.rand(blocks, **draw) + 0.5  # type: ignore[call-overload]
        return NF4Tensor(packed, absmax, code, None, None, 0.0, shape, torch.bfloat16)
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, **draw)  # type: ignore[call-overload]
    coarse = torch.rand(-(-blocks // NESTED_BLOCK), **draw) * 0.3 + 0.1  # type: ignore[call-overload]
    return NF4Tensor(
        packed, absmax, code, coarse, dynamic_code().to(device), 0.7654321, shape, torch.bfloat16
    )


def _dequantize_case(shape: tuple[int, int], nested: bool) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        return {"weight": draw_nf4(shape, nested, generator, device), "dtype": dtype}

    return Case(f"{shape[0]}x{shape[1]}{'' if nested else ' flat'}", make)


def _quantize_case(shape: tuple[int, int]) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        rows = torch.randn(shape[0], 1, generator=generator, device=device).exp()
        return {"weight": (torch.randn(shape, generator=generator, device=device) * rows).to(dtype)}

    return Case(f"{shape[0]}x{shape[1]}", make)


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    quantized = quantize_nf4(weight, nested=False)
    return quantized.packed, quantized.absmax


def _quantize_reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_torch(weight.float().reshape(-1))  # float32 holds every dtype of a case exactly


def _shapes(shape: ModelShape) -> list[tuple[int, int]]:
    return [(shape.hidden, shape.hidden), (2 * shape.intermediate, shape.hidden)]


NF4_DEQUANTIZE = Op(
    "nf4_dequantize",
    dequantize_nf4,
    lambda weight, dtype: dequantize_torch(weight, dtype),
    [
        _dequantize_case(s, n)
        for s in ((1, 1), (7, 13), (64, 64), (33, 67), (130, 320))
        for n in (True, False)
    ],
    EXACT,
    bytes=lambda weight, dtype: weight.nbytes + math.prod(weight.shape) * dtype.itemsize,
    flops=lambda weight, dtype: math.prod(weight.shape),
    launches=launches_dequantize(),
    timed=lambda shape: [_dequantize_case(s, True) for s in _shapes(shape)],
)
NF4_QUANTIZE = Op(
    "nf4_quantize",
    _quantize,
    _quantize_reference,
    [_quantize_case(s) for s in ((1, 1), (3, 5), (1, 64), (33, 67), (65, 128))],
    EXACT,
    bytes=lambda weight: weight.nbytes + weight.numel() // 2 + 4 * (weight.numel() // BLOCK),
    flops=lambda weight: 17 * weight.numel(),
    launches=launches_quantize(),
    timed=lambda shape: [_quantize_case(s) for s in _shapes(shape)],
)
