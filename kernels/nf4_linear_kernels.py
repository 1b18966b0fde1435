"""Triton kernels of `nf4_linear`: the product with a packed NF4 weight, and the sum of its parts along K."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from proactor.kernels.jit import interpreted, jit_any, tl, triton
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_decode import assembly, decode, level_table
from proactor.kernels.nf4_kernels import round_half
from proactor.kernels.nf4_pack import (
    LAUNCHES,
    SCALE_TYPES,
    PackedNF4,
    expand_scales,
    raw_scales,
    scale_arguments,
)
from proactor.kernels.op import Launch, require, settings_for

WIDE_TILE = {"block_n": 128, "warps": 8, "stages": 3}
TILES: dict[int, dict[str, dict[str, int]]] = {
    16: {
        "default": {"block_n": 64, "warps": 4, "stages": 4},
        "gfx942": {"block_n": 64, "warps": 4, "stages": 2},
    },
    32: {
        "default": {"block_n": 64, "warps": 4, "stages": 4},
        "gfx942": {"block_n": 64, "warps": 4, "stages": 2},
    },
    64: {
        "default": {"block_n": 64, "warps": 4, "stages": 3},
        "sm_80": WIDE_TILE,
        "sm_90": WIDE_TILE,
        "sm_100": WIDE_TILE,
        "gfx942": {"block_n": 128, "warps": 8, "stages": 2},
    },
}
"""Tile sizes, by rows of x per program."""
SPLIT_CHUNKS = {"default": {"least": 8}, "interpreter": {"least": 1}}
"""Fewest chunks of 128 columns per part, by device."""
MOST_SPLITS = 8
"""Most parts along K."""
HALVES = (torch.bfloat16, torch.float16)


@jit_any("M")
def nf4_linear_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    code_ptr,
    coarse_ptr,
    offset_ptr,
    levels_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    rows,
    chunks,
    per_split,
    NESTED: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Grid (ceil(M / BLOCK_M), ceil(N / BLOCK_N), parts), tile [BLOCK_N, BLOCK_M]: y [M, N].

    With SPLIT, part p of y [parts, M, N] float32, over ``per_split`` chunks of 128 columns of W.
    """
    # m varies fastest over the grid: programs that share a weight tile run together
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    K = tl.multiple_of(K, 64)
    blocks = K // 64
    column = tl.arange(0, 64)[:, None]
    row_at = ((n // 64).to(tl.int64) * chunks * 1024 + (n % 64) * 16)[:, None]
    words_at = words_ptr + row_at + tl.arange(0, 16)[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * K + column
    stored, live = (n < rows)[:, None], (m < M)[None, :]
    first = part * per_split
    last = tl.minimum(first + per_split, chunks)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    raw0 = raw_scales(scale_ptr, 2 * first, blocks, rows, n)
    raw1 = raw_scales(scale_ptr, 2 * first + 1, blocks, rows, n)
    for chunk in range(first, last):
        scale0 = expand_scales(raw0, code_ptr, coarse_ptr, offset_ptr, 2 * chunk, blocks, n, N, NESTED)
        scale1 = expand_scales(raw1, code_ptr, coarse_ptr, offset_ptr, 2 * chunk + 1, blocks, n, N, NESTED)
        # prefetch the scales of the next chunk during the products
        raw0 = raw_scales(scale_ptr, 2 * chunk + 2, blocks, rows, n)
        raw1 = raw_scales(scale_ptr, 2 * chunk + 3, blocks, rows, n)
        words = tl.load(words_at + chunk * 1024, mask=stored, other=0)
        words0, words1 = tl.split(tl.reshape(words, (BLOCK_N, 8, 2)))
        for half in tl.static_range(2):
            k = chunk * 128 + half * 64
            if EVEN:
                x = tl.load(x_at + k, mask=live, other=0.0)
            else:
                x = tl.load(x_at + k, mask=live & (k + column < K), other=0.0)
            w = decode(words0 if half == 0 else words1, levels_ptr, ASSEMBLY, BLOCK_N)
            if WIDE:
                x, w = x.to(tl.float32), w.to(tl.float32)
            acc += tl.dot(w, x, input_precision="ieee") * (scale0 if half == 0 else scale1)[:, None]
    inside = (n < N)[:, None] & live
    at = y_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
    if SPLIT:
        tl.store(at + part.to(tl.int64) * M * N, acc, mask=inside)
    else:
        if BIAS:
            acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(at, round_half(acc, y_ptr.dtype.element_ty, WIDE), mask=inside)


@jit_any("M")
def sum_parts_kernel(
    parts_ptr, bias_ptr, y_ptr, M, N, parts, BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (ceil(N / BLOCK), M), tile [BLOCK]: y [M, N], the parts [parts, M, N] summed in order, + bias."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    at = tl.program_id(1).to(tl.int64) * N + n
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(parts_ptr + tl.cast(part, tl.int64) * M * N + at, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, round_half(total, y_ptr.dtype.element_ty, WIDE), mask=inside)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _per_split(n: int, chunks: int, device: torch.device) -> int:
    """Chunks per part: enough parts for two programs per multiprocessor.

    Independent of the rows of x, so that the product is batch-invariant.
    """
    wanted = min(MOST_SPLITS, triton.cdiv(2 * _processors(device), triton.cdiv(n, 64)))
    parts = max(1, min(wanted, chunks // settings_for(SPLIT_CHUNKS, device)["least"]))
    return triton.cdiv(chunks, parts)  # type: ignore[no-any-return]


def fused_nf4_linear(x: Tensor, weight: PackedNF4, bias: Tensor | None = None) -> Tensor:
    """The fused form at any number of rows: x [M, K] -> [M, N] in x's dtype, without gradient.

    Runs Triton kernels: tensors on a GPU, or ``TRITON_INTERPRET=1``. Raises KernelError as `nf4_linear`.
    """
    check_linear(x, weight, bias)
    (m, k), (n, _), device = x.shape, weight.shape, x.device
    y = torch.empty(m, n, dtype=x.dtype, device=device)
    if not m:
        return y
    x = x.contiguous()
    row_tiles, chunks = weight.words.shape[:2]
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    tile = settings_for(TILES[block_m], device)
    per_split = _per_split(n, chunks, device)
    parts = triton.cdiv(chunks, per_split)
    out = y if parts == 1 else torch.empty(parts, m, n, dtype=torch.float32, device=device)
    bias_pointer = x if bias is None else bias
    nf4_linear_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, tile["block_n"]), parts)](
        *(x, weight.words, *scale_arguments(weight), level_table(x.dtype, device), bias_pointer, out),
        *(m, n, k, 64 * row_tiles, chunks, per_split),
        NESTED=weight.nested,
        BIAS=bias is not None,
        SPLIT=parts > 1,
        EVEN=k % 128 == 0,
        ASSEMBLY=assembly(x),
        WIDE=interpreted(),
        BLOCK_N=tile["block_n"],
        BLOCK_M=block_m,
        num_warps=tile["warps"],
        num_stages=tile["stages"],
    )
    if parts > 1:
        sum_parts_kernel[(triton.cdiv(n, 1024), m)](
            out, bias_pointer, y, m, n, parts, bias is not None, interpreted(), 1024, num_warps=4
        )
    return y


def check_linear(x: Tensor, weight: NF4Tensor | PackedNF4, bias: Tensor | None) -> None:
    """Raise KernelError unless x [..., K], weight [N, K] and bias [N] or None match."""
    n, k = weight.shape
    require(x.dtype in (torch.float32, *HALVES), "x", f"{x.dtype}: float32, float16 or bfloat16 wanted")
    require(x.ndim > 0 and x.shape[-1] == k, "x", f"shape {tuple(x.shape)} for a weight of {k} columns")
    require(weight.device == x.device, "weight", f"on {weight.device}, x on {x.device}")
    if bias is not None:
        require(bias.shape == (n,), "bias", f"shape {tuple(bias.shape)} for a weight of {n} rows")
        require(bias.device == x.device, "bias", f"on {bias.device}, x on {x.device}")


TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def launches() -> list[Launch]:
    """What to compile: every tile size on every target, whole and in parts, and the sum of the parts."""
    pointers = dict.fromkeys(("x_ptr", "levels_ptr", "bias_ptr"), "*bf16")
    sizes = dict.fromkeys(("M", "N", "K", "rows", "chunks", "per_split"), "i32")
    types = pointers | SCALE_TYPES | {"words_ptr": "*i32"} | sizes
    compiled = []
    for block_m, table in TILES.items():
        for split in (False, True):
            for target in TARGETS:
                tile = table.get(target, table["default"])
                constants: dict[str, int] = {
                    "NESTED": True,
                    "BIAS": True,
                    "SPLIT": split,
                    "EVEN": True,
                    "WIDE": False,
                }
                constants |= {"ASSEMBLY": int(target != "gfx942"), "BLOCK_N": tile["block_n"]}
                constants |= {"BLOCK_M": block_m}
                settings = tile["warps"], tile["stages"], (target,)
                output = {"y_ptr": "*fp32" if split else "*bf16"}
                compiled.append(Launch(nf4_linear_kernel, types | output, constants, *settings))
    types = {"parts_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16"}
    types |= dict.fromkeys(("M", "N", "parts"), "i32")
    compiled.append(Launch(sum_parts_kernel, types, {"BIAS": True, "WIDE": False, "BLOCK": 1024}))
    return compiled + LAUNCHES
