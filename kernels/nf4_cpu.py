"""NF4 weights multiplied on a CPU, with one copy of the codes: fused for few rows, else dequantised in parts.

    y = x Wᵀ + b,   dx = dy W        x [T, K], W [N, K] of weights stacked by rows

Few rows: the weight is decoded in registers (`nf4_library.fused_linear`), half a byte read a weight; the
block scales are rounded to bfloat16 there. Many rows, and the backward: `PART` weights at a time are
dequantised, with the exact scales, and multiplied by the library while they are in the cache; a whole dense
weight never is in memory. From how many rows on that is faster is measured (`crossover`).

The fused product wants its own order of the codes, [N / 32, K / 2, 32]: byte 2 i + e of the pair p of columns
holds column 2 p + e of row i of the 32 in its low nibble, and of row 16 + i in its high one. That order is
the only one held; a part is put back into the order of bitsandbytes' files before it is dequantised. [OWN]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from proactor.kernels.linear import Linear, fastest_cpu_linear
from proactor.kernels.nf4 import BLOCK, NF4_CODE, BlockScales, NF4Tensor, quantize_nf4
from proactor.kernels.nf4_library import FUSED_ROWS, fused_linear, library_fuses
from proactor.kernels.nf4_stack import Weights, check_stack, passes
from proactor.kernels.op import require
from proactor.kernels.shortest import shortest

HALF = FUSED_ROWS // 2
PART = 1 << 22
"""Weights dequantised at a time: 8 MB in bfloat16."""
FEW = 8
"""Rows up to which the fused product is taken unmeasured: it reads a quarter of the bytes."""
COUNTS = (16, 32, 64, 128, 256, 512, 1024)
"""Row counts at which the two forms are compared."""
PROBE_OUTPUTS = 2048
PROBES = 3
"""Times that each form is tried; the shortest counts."""
FUSED_GAP = 8e-3
"""Largest relative error of the fused product (Frobenius norm) at which it is used. Measured: 2.9e-3, and
1.7e-3 for the exact weight in bfloat16."""


@dataclass(frozen=True, slots=True)
class HostNF4:
    """NF4 weights [N_i, K], stacked by rows, for products on a CPU.

    ``codes`` u8: as stored [N, K / 2], or interleaved [N / 32, K / 2, 32] with ``coarse`` bf16 [K / 64, N],
    the scales of the fused product (None: not fused). ``scales`` and ``rows`` (N_i): one a weight, exact.
    ``dtype``: the weights' before quantisation.
    """

    codes: Tensor
    coarse: Tensor | None
    scales: tuple[BlockScales, ...]
    rows: tuple[int, ...]
    columns: int
    blocksize: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the stack."""
        return sum(self.rows), self.columns

    @property
    def device(self) -> torch.device:
        """The device of the bytes."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes held, scales and tables included."""
        parts = [self.codes, self.coarse]
        for scales in self.scales:
            parts += [scales.absmax, scales.nested_absmax, scales.nested_code]
        return sum(part.nbytes for part in parts if part is not None)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [N, K] in ``dtype`` (default: its own), the bits of `NF4Tensor.dequantize`."""
        return torch.cat([dense.to(dtype or self.dtype) for _, dense in self.parts()])

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, the weight there in its own dtype), some `PART` weights at a time."""
        step = max(1, PART // self.columns // FUSED_ROWS) * FUSED_ROWS
        first = 0
        for scales, rows in zip(self.scales, self.rows, strict=True):
            expanded = scales.expand().view(rows, -1)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                part = slice(first + start, first + stop)
                yield part, self._dense(part, expanded[start:stop].reshape(-1))
            first += rows

    def _dense(self, rows: slice, scales: Tensor) -> Tensor:
        if self.codes.ndim == 3:
            packed = deinterleave(self.codes[rows.start // FUSED_ROWS : rows.stop // FUSED_ROWS])
        else:
            packed = self.codes[rows].reshape(-1)
        shape = rows.stop - rows.start, self.columns
        stored = packed, scales, NF4_CODE, None, None, 0.0, shape, self.dtype, self.blocksize
        return NF4Tensor(*stored).dequantize()


def interleave(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Codes as stored, u8 [N * K / 2], in the order of the fused product [N / 32, K / 2, 32]."""
    rows, pairs = shape[0], shape[1] // 2
    stored = packed.view(rows // FUSED_ROWS, 2, HALF, pairs)
    out = torch.empty(rows // FUSED_ROWS, pairs, HALF, 2, dtype=torch.uint8)
    for block, (low, high) in zip(out, stored, strict=True):
        block[..., 0] = (low >> 4 | high & 0xF0).t()
        block[..., 1] = (low & 15 | high << 4).t()
    return out.view(-1, pairs, FUSED_ROWS)


def deinterleave(codes: Tensor) -> Tensor:
    """The inverse of `interleave`: u8 [n, K / 2, 32] -> [n * 32 * K / 2]."""
    words = codes.view(torch.int16)  # the lower byte is that of the even column
    low = (words & 0x0F) << 4 | words >> 8 & 0x0F
    both = (low | (words & 0xF0 | words >> 12 & 0x0F) << 8).transpose(1, 2).contiguous()
    halves = both.view(torch.uint8).view(*both.shape, 2)
    return torch.stack((halves[..., 0], halves[..., 1]), dim=1).view(-1)


def can_host(*weights: NF4Tensor) -> bool:
    """Whether `host` takes these weights together."""
    return passes(_check, weights)


def _check(weights: Weights) -> None:
    for w in weights:
        require(w.device.type == "cpu", "weights", f"on {w.device}, not a CPU")
    check_stack(weights)


def host(*weights: NF4Tensor, dtype: torch.dtype) -> HostNF4:
    """The weights [N_i, K], stacked by rows, for rows x in ``dtype``; no bit of the exact form changes.

    Raises KernelError ("weights: ...") for weights that are not on a CPU, whose rows are not whole blocks, or
    that cannot be stacked.
    """
    _check(weights)
    first, columns = weights[0], weights[0].shape[1]
    fused = dtype == torch.bfloat16 and first.blocksize == BLOCK and _fuses()
    coarse = None
    if fused and all(w.shape[0] % FUSED_ROWS == 0 for w in weights):
        codes = torch.cat([interleave(w.packed, w.shape) for w in weights])
        scales = torch.cat([w.scales().view(w.shape[0], -1) for w in weights])
        coarse = scales.t().to(torch.bfloat16).contiguous()
    else:
        codes = torch.cat([w.packed.view(w.shape[0], -1) for w in weights])
    stored, rows = tuple(w.stored_scales() for w in weights), tuple(w.shape[0] for w in weights)
    return HostNF4(codes, coarse, stored, rows, columns, first.blocksize, first.dtype)


@lru_cache(maxsize=1)
def _fuses() -> bool:
    """Whether the fused product is there, and right on a small weight."""
    if not library_fuses():
        return False
    generator = torch.Generator().manual_seed(0)
    weight = quantize_nf4(torch.randn(2 * FUSED_ROWS, 3 * BLOCK, generator=generator))
    x = torch.randn(5, 3 * BLOCK, generator=generator).to(torch.bfloat16)
    codes, coarse = interleave(weight.packed, weight.shape), weight.scales().view(weight.shape[0], -1).t()
    found = fused_linear(x, codes, coarse.to(torch.bfloat16).contiguous(), weight.shape).double()
    wanted = x.double() @ weight.dequantize(torch.float64).t()
    return float((found - wanted).norm() / wanted.norm()) < FUSED_GAP


def host_linear(x: Tensor, weight: HostNF4, bias: Tensor | None, linear: Linear) -> Tensor:
    """``x Wᵀ + b`` without gradient: x [T, K], bias [N] or None -> [T, N] in x's dtype.

    ``linear`` multiplies what is dequantised.
    """
    if takes_fused(x, weight):
        assert weight.coarse is not None
        y = fused_linear(x.contiguous(), weight.codes, weight.coarse, weight.shape)
        return y if bias is None else y.add_(bias)
    y = x.new_empty(x.shape[0], weight.shape[0])
    for rows, dense in weight.parts():
        y[:, rows] = linear(x, dense.to(x.dtype), None if bias is None else bias[rows])
    return y


def host_back(dy: Tensor, weight: HostNF4, linear: Linear) -> Tensor:
    """``dy W``, the gradient of x [T, K] in dy's dtype; dy [T, N]. Parts are added in float32."""
    dx = torch.zeros(dy.shape[0], weight.columns, dtype=torch.promote_types(dy.dtype, torch.float32))
    for rows, dense in weight.parts():
        dx += linear(dy[:, rows].contiguous(), dense.to(dy.dtype).t(), None)
    return dx.to(dy.dtype)


def takes_fused(x: Tensor, weight: HostNF4) -> bool:
    """Whether rows x [T, K] are multiplied by the fused product."""
    if weight.coarse is None or x.dtype != torch.bfloat16 or not len(x):
        return False
    return len(x) <= FEW or len(x) <= crossover(weight.columns)


def path_of(weight: HostNF4) -> str:
    """Which form multiplies how many rows, in words."""
    if weight.coarse is None:
        return "nf4 on the CPU, dequantised in parts"
    return f"nf4 on the CPU, fused up to {crossover(weight.columns)} rows, dequantised in parts above"


@lru_cache(maxsize=64)
@torch.no_grad()
def crossover(columns: int) -> int:
    """Largest of `COUNTS` at which the fused product still wins over weights of so many columns; else `FEW`.

    Measured once in a process, at the first call (about a second).
    """
    generator = torch.Generator().manual_seed(0)
    shape = PROBE_OUTPUTS, columns
    packed = torch.randint(256, (math.prod(shape) // 2,), dtype=torch.uint8, generator=generator)
    absmax = torch.rand(math.prod(shape) // BLOCK, generator=generator)
    weight = host(
        NF4Tensor(packed, absmax, NF4_CODE, None, None, 0.0, shape, torch.bfloat16), dtype=torch.bfloat16
    )
    if weight.coarse is None:
        return 0
    dense, largest = replace(weight, coarse=None), FEW
    for count in COUNTS:
        x = torch.randn(count, columns, generator=generator).to(torch.bfloat16)
        fused = partial(fused_linear, x, weight.codes, weight.coarse, weight.shape)
        seconds = shortest([fused, partial(host_linear, x, dense, None, fastest_cpu_linear())], PROBES)
        if seconds[0] > seconds[1]:
            break
        largest = count
    return largest
