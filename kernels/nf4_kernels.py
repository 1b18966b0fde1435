"""Triton kernels of NF4 quantisation and dequantisation, bit-identical to the torch forms of `nf4`."""

from __future__ import annotations

import torch
from torch import Tensor

from proactor.kernels.jit import interpreted, jit, tl, triton
from proactor.kernels.op import Launch

VALUES = 4096
"""Weights per program."""


@jit
def round_half(value, dtype: tl.constexpr, WIDE: tl.constexpr):
    """float32 to ``dtype``, to nearest even; WIDE: by hand, since the interpreter truncates to bfloat16."""
    if WIDE and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = value.to(dtype)
    return rounded


@jit
def dequantize_nf4_kernel(
    packed_ptr,
    absmax_ptr,
    levels_ptr,
    nested_code_ptr,
    nested_absmax_ptr,
    out_ptr,
    size,
    offset,
    nested_block,
    NESTED: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(blocks / ROWS)), tile [ROWS, BLOCK]: out [size]. Compile without multiply-add fusion.

    A nested scale is rounded twice, after the product and after the sum.
    """
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    blocks = (size + BLOCK - 1) // BLOCK
    live = block < blocks
    if NESTED:
        raw = tl.load(absmax_ptr + block, mask=live, other=0)
        scale = tl.load(nested_code_ptr + raw.to(tl.int32))
        scale = scale * tl.load(nested_absmax_ptr + block // nested_block, mask=live, other=0.0) + offset
    else:
        scale = tl.load(absmax_ptr + block, mask=live, other=0.0)
    byte = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    both = tl.load(packed_ptr + byte, mask=byte < (size + 1) // 2, other=0).to(tl.int32)
    high, low = tl.load(levels_ptr + (both >> 4)), tl.load(levels_ptr + (both & 15))
    value = tl.interleave(high, low) * scale[:, None]
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + at, round_half(value, out_ptr.dtype.element_ty, WIDE), mask=at < size)


@jit
def quantize_nf4_kernel(
    weight_ptr,
    midpoints_ptr,
    packed_ptr,
    absmax_ptr,
    size,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(blocks / ROWS)), tile [ROWS, BLOCK]: packed u8 [ceil(size / 2)], absmax f32 [blocks].

    absmax is infinite if a value of the block is not finite. As in the torch form, a whole block is
    multiplied by a reciprocal, and a short last one divided. Divisions are rounded by IEEE.
    """
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(weight_ptr + at, mask=at < size, other=0.0).to(tl.float32)
    magnitude = tl.abs(value)
    absmax = tl.max(magnitude, 1)
    not_finite = tl.sum((magnitude <= 3.4028234663852886e38).to(tl.int32), 1) < BLOCK
    # tl.full, because triton 3.6 takes a bare subnormal constant for float64
    safe = tl.maximum(absmax, tl.full((ROWS,), 1e-38, tl.float32))
    whole = (block + 1) * BLOCK <= size
    one = tl.full((ROWS,), 1.0, tl.float32)
    scaled = tl.where(
        whole[:, None],
        value * tl.div_rn(one, safe)[:, None],
        tl.div_rn(value, tl.broadcast_to(safe[:, None], (ROWS, BLOCK))),
    )
    code = tl.zeros((ROWS, BLOCK), tl.int32)
    for i in tl.static_range(15):
        code += (scaled > tl.load(midpoints_ptr + i)).to(tl.int32)
    high, low = tl.split(tl.reshape(code, (ROWS, BLOCK // 2, 2)))
    byte = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(packed_ptr + byte, ((high << 4) | low).to(tl.uint8), mask=byte < (size + 1) // 2)
    stored = tl.where(not_finite, float("inf"), tl.where(whole, absmax, safe))
    tl.store(absmax_ptr + block, stored, mask=block * BLOCK < size)


def launch_dequantize(
    packed: Tensor,
    absmax: Tensor,
    code: Tensor,
    nested: tuple[Tensor, Tensor, float, int] | None,
    size: int,
    blocksize: int,
    dtype: torch.dtype,
) -> Tensor:
    """The flat weight [size] in ``dtype``; ``nested``: (code, absmax, offset, block size) of the scales."""
    out = torch.empty(size, dtype=dtype, device=packed.device)
    rows = max(1, VALUES // blocksize)
    nested_code, nested_absmax, offset, nested_block = nested or (code, code, 0.0, 1)
    if size:
        constants = {"NESTED": nested is not None, "WIDE": interpreted(), "ROWS": rows, "BLOCK": blocksize}
        dequantize_nf4_kernel[(triton.cdiv(size, rows * blocksize),)](
            *(packed, absmax, code, nested_code, nested_absmax, out, size, offset, nested_block),
            **constants,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def launch_quantize(flat: Tensor, midpoints: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(packed u8, absmax f32) of a flat weight of at least one value."""
    size = flat.numel()
    packed = torch.empty((size + 1) // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(triton.cdiv(size, block), dtype=torch.float32, device=flat.device)
    rows = VALUES // block
    quantize_nf4_kernel[(triton.cdiv(size, VALUES),)](
        flat, midpoints, packed, absmax, size, interpreted(), rows, block, num_warps=8
    )
    return packed, absmax


def launches_dequantize() -> list[Launch]:
    """What to compile: nested and single-level scales."""
    types = dict.fromkeys(("levels_ptr", "nested_code_ptr", "nested_absmax_ptr"), "*fp32")
    types |= {"packed_ptr": "*u8", "out_ptr": "*bf16", "size": "i32", "offset": "fp32", "nested_block": "i32"}
    constants = {"WIDE": False, "ROWS": VALUES // 64, "BLOCK": 64}
    return [
        Launch(dequantize_nf4_kernel, types | {"absmax_ptr": kind}, constants | {"NESTED": nested})
        for nested, kind in ((True, "*u8"), (False, "*fp32"))
    ]


def launches_quantize() -> list[Launch]:
    """What to compile: a bfloat16 weight."""
    types = {"weight_ptr": "*bf16", "midpoints_ptr": "*fp32", "packed_ptr": "*u8"}
    types |= {"absmax_ptr": "*fp32", "size": "i32"}
    return [Launch(quantize_nf4_kernel, types, {"WIDE": False, "ROWS": VALUES // 64, "BLOCK": 64}, 8)]
