"""Triton kernels of `lora_linear`: the narrow product x Aᵀ for few rows, and all targets' updates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proactor.kernels.jit import interpreted, jit, jit_any, tl, triton
from proactor.kernels.nf4_kernels import round_half
from proactor.kernels.op import Launch, settings_for

TARGETS = 4
"""Most spans per launch."""
RANKS = 64
"""Largest rank of the kernels."""
MOST_PARTS = 8
"""Most parts along K of x Aᵀ."""
ADD = {
    16: {"default": {"block_n": 64, "warps": 4, "stages": 2}},
    64: {"default": {"block_n": 128, "warps": 8, "stages": 2}},
}
"""Tiles of `lora_add_kernel`, by rows per program."""
DOWN = {
    16: {
        "default": {"block_r": 64, "warps": 4, "stages": 3},
        "gfx942": {"block_r": 64, "warps": 4, "stages": 2},
    },
    64: {
        "default": {"block_r": 64, "warps": 8, "stages": 3},
        "gfx942": {"block_r": 64, "warps": 8, "stages": 2},
    },
}
"""Tiles of `lora_down_kernel`, by rows per program."""


@jit_any("M")
def lora_down_kernel(
    x_ptr,
    a_ptr,
    parts_ptr,
    M,
    R,
    K,
    per_part,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Grid (parts of K, ceil(M / BLOCK_M), ceil(R / BLOCK_R)), tile [BLOCK_M, BLOCK_R]: parts of x Aᵀ.

    x [M, K], A [R, K] -> float32 [parts, M, R]; part p covers ``per_part`` columns, a multiple of 64.
    """
    part = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, 64)
    x_at = x_ptr + m.to(tl.int64)[:, None] * K + column[None, :]
    a_at = a_ptr + r.to(tl.int64)[None, :] * K + column[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for start in range(part * per_part, tl.minimum((part + 1) * per_part, K), 64):
        inside = start + column < K
        x = tl.load(x_at + start, mask=(m < M)[:, None] & inside[None, :], other=0.0)
        a = tl.load(a_at + start, mask=inside[:, None] & (r < R)[None, :], other=0.0)
        if WIDE:
            x, a = x.to(tl.float32), a.to(tl.float32)
        else:
            a = a.to(x.dtype)
        acc += tl.dot(x, a, input_precision="ieee")
    at = parts_ptr + (tl.cast(part, tl.int64) * M + m[:, None]) * R + r[None, :]
    tl.store(at, acc, mask=(m < M)[:, None] & (r < R)[None, :])


@jit
def _next_span(tile, end, next_ptr, next_start, next_width, next_target, b_ptr, start, width, target, base):
    """(B, start, width, target, first tile) of the next span if ``tile`` >= ``end``, else unchanged."""
    beyond = tile >= end
    b_ptr, start = tl.where(beyond, next_ptr, b_ptr), tl.where(beyond, next_start, start)
    width, target = tl.where(beyond, next_width, width), tl.where(beyond, next_target, target)
    return b_ptr, start, width, target, tl.where(beyond, end, base)


@jit_any("M")
def lora_add_kernel(
    y_ptr,
    xa_ptr,
    mask_ptr,
    b0_ptr,
    b1_ptr,
    b2_ptr,
    b3_ptr,
    M,
    N,
    R,
    rank,
    parts,
    first,
    start0,
    start1,
    start2,
    start3,
    width0,
    width1,
    width2,
    width3,
    scale,
    COUNT: tl.constexpr,
    SPLIT: tl.constexpr,
    MASK: tl.constexpr,
    WIDE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (tiles of all COUNT spans, ceil(M / BLOCK_M)), tile [BLOCK_M, BLOCK_N]: adds their updates to y.

    y [M, N] += scale * mask * (xa_i B_iᵀ); xa [parts, M, R], target i's columns start at (first + i) * rank.
    """
    tile = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    b_ptr, start, width, target, base = b0_ptr, start0, width0, first, 0
    end = tl.cdiv(width0, BLOCK_N)  # programs are numbered span after span
    if COUNT > 1:
        b_ptr, start, width, target, base = _next_span(
            tile, end, b1_ptr, start1, width1, first + 1, b_ptr, start, width, target, base
        )
        end += tl.cdiv(width1, BLOCK_N)
    if COUNT > 2:
        b_ptr, start, width, target, base = _next_span(
            tile, end, b2_ptr, start2, width2, first + 2, b_ptr, start, width, target, base
        )
        end += tl.cdiv(width2, BLOCK_N)
    if COUNT > 3:
        b_ptr, start, width, target, base = _next_span(
            tile, end, b3_ptr, start3, width3, first + 3, b_ptr, start, width, target, base
        )
    n = (tile - base) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, PAD)
    xa_at = xa_ptr + m.to(tl.int64)[:, None] * R + target * rank + c[None, :]
    inside = (m < M)[:, None] & (c < rank)[None, :]
    xa = tl.load(xa_at, mask=inside, other=0.0)
    if SPLIT:
        for part in range(1, parts):  # parts are float32
            xa += tl.load(xa_at + part * M * R, mask=inside, other=0.0)
    b = tl.load(
        b_ptr + n[None, :] * rank + c[:, None], mask=(n < width)[None, :] & (c < rank)[:, None], other=0.0
    )
    if WIDE:
        xa, b = xa.to(tl.float32), b.to(tl.float32)
    else:
        xa, b = xa.to(y_ptr.dtype.element_ty), b.to(y_ptr.dtype.element_ty)
    update = tl.dot(xa, b, input_precision="ieee") * scale
    if MASK:
        update *= tl.load(mask_ptr + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    live = (m < M)[:, None] & (n < width)[None, :]
    at = y_ptr + m.to(tl.int64)[:, None] * N + start + n[None, :]
    total = tl.load(at, mask=live, other=0.0).to(tl.float32) + update
    tl.store(at, round_half(total, y_ptr.dtype.element_ty, WIDE), mask=live)


def _rows(count: int) -> int:
    return 16 if count <= 16 else 64


def launch_down(x: Tensor, a: Tensor) -> Tensor:
    """x Aᵀ in parts along K, to be added in order: x [M, K], a [R, K] of any float dtype -> [parts, M, R]."""
    (m, k), r = x.shape, a.shape[0]
    # a power of two, so that few variants are compiled
    parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(k, 512)))
    per_part = 64 * triton.cdiv(k, 64 * parts)
    out = torch.empty(parts, m, r, dtype=torch.float32, device=x.device)
    block_m = _rows(m)
    tile = settings_for(DOWN[block_m], x.device)
    block_r = min(tile["block_r"], max(16, triton.next_power_of_2(r)))
    if out.numel():
        constants = {"WIDE": interpreted(), "BLOCK_M": block_m, "BLOCK_R": block_r}
        settings = {"num_warps": tile["warps"], "num_stages": tile["stages"]}
        lora_down_kernel[(parts, triton.cdiv(m, block_m), triton.cdiv(r, block_r))](
            x.contiguous(), a.contiguous(), out, m, r, k, per_part, **constants, **settings
        )
    return out


def launch_add(
    y: Tensor,
    xa: Tensor,
    b: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    rank: int,
    scale: float,
    row_mask: Tensor | None,
) -> None:
    """y [M, N] += scale * row_mask * (xa_i B_iᵀ) on the spans, in place; xa [parts, M, t * rank]."""
    (m, n), (parts, _, r) = y.shape, xa.shape
    block_m = _rows(m)
    tile = settings_for(ADD[block_m], y.device)
    mask = y if row_mask is None else row_mask.contiguous()
    constants: dict[str, int] = {"SPLIT": parts > 1, "MASK": row_mask is not None, "WIDE": interpreted()}
    constants |= {
        "PAD": max(16, triton.next_power_of_2(rank)),
        "BLOCK_M": block_m,
        "BLOCK_N": tile["block_n"],
    }
    settings = {"num_warps": tile["warps"], "num_stages": tile["stages"]}
    for first in range(0, len(b) if m else 0, TARGETS):
        factors = [factor.contiguous() for factor in b[first : first + TARGETS]]
        count, launch_spans = len(factors), spans[first : first + TARGETS]
        unused = TARGETS - count
        starts = [start for start, _ in launch_spans] + [0] * unused
        widths = [stop - start for start, stop in launch_spans] + [0] * unused
        tiles = sum(triton.cdiv(width, tile["block_n"]) for width in widths)
        tensors = y, xa, mask, *factors, *factors[:1] * unused
        sizes = m, n, r, rank, parts, first, *starts, *widths
        lora_add_kernel[(tiles, triton.cdiv(m, block_m))](
            *tensors, *sizes, scale, COUNT=count, **constants, **settings
        )


def launches_add() -> list[Launch]:
    """What to compile: q, k, v of a decode step, gate and up of a training batch, at ranks 16 and 64."""
    integers = "M N R rank parts first".split()
    integers += [f"{kind}{i}" for kind in ("start", "width") for i in range(TARGETS)]
    types = dict.fromkeys(integers, "i32") | {f"b{i}_ptr": "*fp32" for i in range(TARGETS)}
    types |= {"y_ptr": "*bf16", "mask_ptr": "*bf16", "scale": "fp32"}
    launches = []
    for block_m, count, parts, kind in ((16, 3, 8, "*fp32"), (64, 2, 1, "*bf16"), (64, 4, 8, "*fp32")):
        tile = ADD[block_m]["default"]
        for pad, masked in ((16, False), (64, True)):
            constants: dict[str, int] = {"COUNT": count, "SPLIT": parts > 1, "MASK": masked, "WIDE": False}
            constants |= {"PAD": pad, "BLOCK_M": block_m, "BLOCK_N": tile["block_n"]}
            launches.append(
                Launch(lora_add_kernel, types | {"xa_ptr": kind}, constants, tile["warps"], tile["stages"])
            )
    return launches


def launches_down() -> list[Launch]:
    """What to compile: 16 and 64 rows."""
    types = dict.fromkeys(("M", "R", "K", "per_part"), "i32")
    types |= {"x_ptr": "*bf16", "a_ptr": "*fp32", "parts_ptr": "*fp32"}
    nvidia = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
    launches = []
    for block_m, table in DOWN.items():
        for name, tile in table.items():
            targets = ("gfx942",) if name == "gfx942" else nvidia
            constants = {"WIDE": False, "BLOCK_M": block_m, "BLOCK_R": tile["block_r"]}
            launches.append(
                Launch(lora_down_kernel, types, constants, tile["warps"], tile["stages"], targets)
            )
    return launches
