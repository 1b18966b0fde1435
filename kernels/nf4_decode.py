"""Decode 4-bit codes to bfloat16 or float16 levels in a kernel: byte permutes on NVIDIA, a table elsewhere.

A word holds eight codes. ``prmt`` picks four bytes out of eight by four 3-bit selectors, and the low three
bits of a code are such a selector. Two permutes look up the low bytes of four codes, among levels 0-7 and
8-15; a third selects between them by each code's top bit. The high bytes take three more, and two interleave
both: 2 permutes per weight, no memory access. The tables are constants of the assembly, because as operands
they would keep Triton from decoding into the registers of the matrix instruction.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from proactor.kernels.jit import jit, tl
from proactor.kernels.nf4 import NF4_CODE


@lru_cache
def level_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The sixteen levels [16] in ``dtype`` on ``device``, cached."""
    return NF4_CODE.to(device, dtype)


def prmt_assembly(dtype: torch.dtype) -> str:
    """PTX that decodes the word ``$8`` to eight values of ``dtype`` (a 16-bit float), nibble i to ``$i``."""
    bits = NF4_CODE.to(dtype).view(torch.int16).tolist()
    tables = {}
    for name, shift in (("l", 0), ("h", 8)):
        part = [b >> shift & 255 for b in bits]
        for i in range(4):
            tables[f"{name}{i}"] = sum(byte << 8 * j for j, byte in enumerate(part[4 * i : 4 * i + 4]))
    lines = [".reg .b32 v, e, a, b, lo, hi, p, q;"]
    lines += [f".reg .b32 {name}; mov.b32 {name}, {value:#010x};" for name, value in tables.items()]
    lines += [
        "and.b32 v, $8, 0x77777777;",
        "shr.b32 e, $8, 1;",
        "lop3.b32 e, e, 0x44444444, 0x32103210, 0xEA;",
    ]
    for half in range(2):
        if half:
            lines += ["shr.b32 v, v, 16;", "shr.b32 e, e, 16;"]
        for name, out in (("l", "lo"), ("h", "hi")):
            lines += [
                f"prmt.b32 a, {name}0, {name}1, v;",
                f"prmt.b32 b, {name}2, {name}3, v;",
                f"prmt.b32 {out}, a, b, e;",
            ]
        lines += ["prmt.b32 p, lo, hi, 0x5140;", "prmt.b32 q, lo, hi, 0x7362;"]
        first = 4 * half
        lines += [f"mov.b32 {{${first}, ${first + 1}}}, p;", f"mov.b32 {{${first + 2}, ${first + 3}}}, q;"]
    return "{ " + " ".join(lines) + " }"


PRMT_BF16 = tl.constexpr(prmt_assembly(torch.bfloat16))
PRMT_FP16 = tl.constexpr(prmt_assembly(torch.float16))
CONSTRAINTS = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r")


def assembly(x: Tensor) -> int:
    """How a kernel decodes for ``x``: 1 by bfloat16 permutes, 2 by float16 permutes, 0 by the table."""
    if not x.is_cuda or torch.version.hip is not None or torch.cuda.get_device_capability(x.device) < (8, 0):
        return 0
    return {torch.bfloat16: 1, torch.float16: 2}.get(x.dtype, 0)


@jit
def _join_nibbles(n0, n1, n2, n3, n4, n5, n6, n7, ROWS: tl.constexpr):
    """Nibbles 0-7 of words [ROWS, 8] as a tile [ROWS, 64] in column order; no data moves between threads."""
    low = tl.join(tl.join(n0, n1), tl.join(n2, n3))  # [rows, word, e, slice & 1]
    high = tl.join(tl.join(n4, n5), tl.join(n6, n7))
    return tl.reshape(tl.permute(tl.join(low, high), (0, 4, 3, 1, 2)), (ROWS, 64))


@jit
def decode(words, levels_ptr, ASSEMBLY: tl.constexpr, ROWS: tl.constexpr):
    """Words int32 [ROWS, 8] -> levels [ROWS, 64]; ASSEMBLY as in `assembly`.

    The table ``levels_ptr`` [16] gives levels in its own dtype.
    """
    if ASSEMBLY == 1:
        n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
            PRMT_BF16, CONSTRAINTS, [words], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=1
        )
        levels = _join_nibbles(n0, n1, n2, n3, n4, n5, n6, n7, ROWS)
    elif ASSEMBLY == 2:
        n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
            PRMT_FP16, CONSTRAINTS, [words], dtype=(tl.float16,) * 8, is_pure=True, pack=1
        )
        levels = _join_nibbles(n0, n1, n2, n3, n4, n5, n6, n7, ROWS)
    else:
        codes = (words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]) & 15
        codes = tl.permute(tl.reshape(codes, (ROWS, 8, 4, 2)), (0, 2, 1, 3))
        levels = tl.load(levels_ptr + tl.reshape(codes, (ROWS, 64)))
    return levels
