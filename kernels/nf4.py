"""NF4 weights with (optionally nested) block scales: quantise, hold, dequantise.

A weight is cut, in row-major order, into blocks of 64 values. A block has one scale, its largest magnitude
(`absmax`); a value has a 4-bit index into sixteen quantiles of a normal distribution. Double quantisation
stores the block scales themselves in 8 bits. The layout is that of bitsandbytes, in both directions:

    packed[j]  = index[2j] << 4 | index[2j + 1]                                     (high nibble first)
    scale[b]   = nested_code[absmax[b]] * nested_absmax[b // 256] + nested_offset   (nested), or absmax[b]
    weight[i]  = code[index[i]] * scale[i // 64], in fp32, rounded to the dtype last

[PAPER] QLoRA for the quantiles and the double quantisation; [CODE] bitsandbytes 0.50 for bits and rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.nf4_kernels import launch_dequantize, launch_quantize
from proactor.kernels.nf4_library import library_available, library_dequantize, library_takes
from proactor.kernels.op import use_triton

BLOCK = 64
NESTED_BLOCK = 256
# Values handled at once by the torch forms: bounds their fp32 temporaries to a few MiB. A multiple of every
# legal block size.
CHUNK = 1 << 20
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TRITON_BLOCKS = tuple(1 << i for i in range(4, 13))

NF4_CODE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float32,
)
"""The sixteen levels, f32 [16], ascending. [CODE] bitsandbytes `_NF4_QUANT_TABLE`."""
MIDPOINTS = (NF4_CODE[:-1] + NF4_CODE[1:]) / 2
"""A value above midpoint i lies above level i."""


class BlockScales(NamedTuple):
    """Block scales as stored: ``absmax`` f32 [blocks], or u8 with the parts of the double quantisation."""

    absmax: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    nested_offset: float
    nested_blocksize: int

    def expand(self) -> Tensor:
        """The scales f32 [blocks] (the formula of the module docstring)."""
        if self.nested_absmax is None or self.nested_code is None:
            return self.absmax
        coarse = self.nested_absmax.repeat_interleave(self.nested_blocksize)[: self.absmax.numel()]
        # Two roundings, multiplication then addition: a fused multiply-add would differ from bitsandbytes in
        # the last bit.
        return self.nested_code[self.absmax.long()].mul_(coarse).add_(self.nested_offset)


@dataclass(frozen=True, slots=True)
class NF4Tensor:
    """A quantised weight [N, K] as stored; raises KernelError when the parts do not fit together.

    ``packed`` u8 [ceil(N * K / 2)]; ``absmax`` f32 [blocks], or u8 [blocks] when nested; ``code`` f32 [16];
    ``nested_absmax`` f32 [ceil(blocks / nested_blocksize)] and ``nested_code`` f32 [256] are None when the
    scales are single-level; ``dtype``: the weight's before quantisation, and `dequantize`'s default.
    """

    packed: Tensor
    absmax: Tensor
    code: Tensor
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    nested_offset: float
    shape: tuple[int, int]
    dtype: torch.dtype
    blocksize: int = BLOCK
    nested_blocksize: int = NESTED_BLOCK

    def __post_init__(self) -> None:
        size = self.shape[0] * self.shape[1]
        blocks = -(-size // self.blocksize)
        if self.packed.dtype != torch.uint8 or self.packed.shape != ((size + 1) // 2,):
            layout = f"{self.packed.dtype} {list(self.packed.shape)}"
            raise KernelError(f"packed is {layout}, {size} values need u8 [{(size + 1) // 2}]")
        scale_dtype = torch.float32 if self.nested_absmax is None else torch.uint8
        if self.absmax.dtype != scale_dtype or self.absmax.shape != (blocks,):
            raise KernelError(
                f"absmax is {self.absmax.dtype} {list(self.absmax.shape)}, not {scale_dtype} [{blocks}]"
            )
        if self.code.shape != (16,):
            raise KernelError(f"code has shape {list(self.code.shape)}, not [16]")
        if (self.nested_absmax is None) != (self.nested_code is None):
            raise KernelError("nested_absmax and nested_code come together or not at all")
        if self.nested_absmax is not None and self.nested_code is not None:
            nested = -(-blocks // self.nested_blocksize)
            if self.nested_absmax.shape != (nested,) or self.nested_code.shape != (256,):
                raise KernelError(
                    f"nested_absmax {list(self.nested_absmax.shape)} and nested_code "
                    f"{list(self.nested_code.shape)} should be [{nested}] and [256]"
                )

    @property
    def nested(self) -> bool:
        """Whether the block scales are themselves quantised."""
        return self.nested_absmax is not None

    @property
    def device(self) -> torch.device:
        """The device of the bytes."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes held, scales and tables included."""
        parts = (self.packed, self.absmax, self.code, self.nested_absmax, self.nested_code)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device | str) -> NF4Tensor:
        """The same weight on ``device``; bits unchanged."""
        return replace(
            self,
            packed=self.packed.to(device),
            absmax=self.absmax.to(device),
            code=self.code.to(device),
            nested_absmax=None if self.nested_absmax is None else self.nested_absmax.to(device),
            nested_code=None if self.nested_code is None else self.nested_code.to(device),
        )

    def scales(self) -> Tensor:
        """Block scales f32 [blocks] (the formula of the module docstring)."""
        return self.stored_scales().expand()

    def stored_scales(self) -> BlockScales:
        """The block scales without the codes."""
        nested = self.nested_absmax, self.nested_code, self.nested_offset, self.nested_blocksize
        return BlockScales(self.absmax, *nested)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [N, K] in ``dtype`` (default: its own), the bits of bitsandbytes `dequantize_4bit`."""
        return dequantize_nf4(self, dtype)


def dequantize_nf4(weight: NF4Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The weight [N, K]: w[i] = code[index[i]] * scale[i // blocksize] in fp32, rounded once to ``dtype``.

    Triton takes fp32, fp16 and bf16, with block sizes that are powers of two from 16 to 4096; bitsandbytes'
    CPU library, where it is there, rows of whole blocks (`library_takes`); torch the rest.
    """
    target = weight.dtype if dtype is None else dtype
    if use_triton(weight.packed) and target in FLOATS and weight.blocksize in TRITON_BLOCKS:
        nested = None
        if weight.nested_code is not None and weight.nested_absmax is not None:
            nested = weight.nested_code, weight.nested_absmax, weight.nested_offset, weight.nested_blocksize
        stored = weight.packed, weight.absmax, weight.code, nested
        return launch_dequantize(*stored, math.prod(weight.shape), weight.blocksize, target).view(
            weight.shape
        )
    if library_takes(weight.packed, weight.shape, weight.blocksize, target) and _library_agrees():
        return library_dequantize(weight.packed, weight.scales(), weight.shape, weight.blocksize, target)
    return dequantize_torch(weight, target)


@lru_cache(maxsize=1)
def _library_agrees() -> bool:
    """Whether bitsandbytes' CPU library is there, and gives the torch form's bits of a small weight."""
    if not library_available():
        return False
    weight = quantize_nf4(torch.randn(4, 2 * BLOCK, generator=torch.Generator().manual_seed(0)), nested=False)
    stored = weight.packed, weight.scales(), weight.shape, BLOCK
    return all(torch.equal(library_dequantize(*stored, d), dequantize_torch(weight, d)) for d in FLOATS)


def dequantize_torch(weight: NF4Tensor, target: torch.dtype) -> Tensor:
    """The torch form of `dequantize_nf4`, `CHUNK` values at a time."""
    size = weight.shape[0] * weight.shape[1]
    scales, packed = weight.scales(), weight.packed
    if packed.numel() % 2 or packed.storage_offset() % 2:  # two bytes are looked up at once
        packed = F.pad(packed, (0, packed.numel() % 2)).clone()
    table = word_table(tuple(weight.code.tolist()), (1, 0, 3, 2)).to(weight.device)
    out = torch.empty(size, dtype=target, device=weight.device)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        words = packed[start // 2 : (stop + 3) // 4 * 2].view(torch.int16)
        values = look_up(table, words).view(torch.float64).view(torch.float32)
        part = scales[start // weight.blocksize : -(-stop // weight.blocksize)]
        whole = values.numel() // weight.blocksize * weight.blocksize
        values[:whole].view(-1, weight.blocksize).mul_(part[: whole // weight.blocksize, None])
        values[whole:].mul_(part[-1])
        out[start:stop] = values[: stop - start]
    return out.view(weight.shape)


@lru_cache(maxsize=8)
def word_table(code: tuple[float, ...], nibbles: tuple[int, ...]) -> Tensor:
    """The levels of some nibbles of each 16-bit word, counted from its lowest, as one number a word [65536].

    Two float32 levels are the bits of a float64, four those of a complex128: a gather then moves them at
    once. [OWN]
    """
    words, levels = torch.arange(65536), torch.tensor(code, dtype=torch.float32)
    pairs = torch.stack([levels[words >> 4 * nibble & 15] for nibble in nibbles], dim=1).view(torch.float64)
    return pairs.view(torch.complex128).view(-1) if len(nibbles) == 4 else pairs.view(-1)


def look_up(table: Tensor, words: Tensor) -> Tensor:
    """``table`` at each of the 16-bit ``words`` (int16 of any shape): their shape, in the table's dtype."""
    index = words.reshape(-1).to(torch.int32).bitwise_and_(0xFFFF)
    # on a CPU index_select is twice as fast as take, and runs in one thread
    found = table.index_select(0, index) if torch.get_num_threads() < 3 else table.take(index.long())
    return found.view(words.shape)


def quantize_nf4(weight: Tensor, nested: bool = True, dtype: torch.dtype | None = None) -> NF4Tensor:
    """Quantise ``weight`` [N, K] (fp32, fp16 or bf16) to NF4 in blocks of 64; ``nested``: 8-bit block scales.

    Bit-identical on a CPU to bitsandbytes `quantize_4bit(..., compress_statistics=nested, quant_type="nf4")`,
    and the same bits on every device. ``dtype`` is the default of `dequantize` (None: the weight's own).
    Raises KernelError unless the weight is two-dimensional, floating and finite.
    """
    if weight.ndim != 2 or weight.dtype not in FLOATS or weight.numel() == 0:
        layout = f"{weight.dtype} {list(weight.shape)}"
        raise KernelError(f"only a two-dimensional fp32, fp16 or bf16 weight can be quantised, not {layout}")
    flat = weight.detach().reshape(-1)
    if use_triton(flat):
        packed, absmax = launch_quantize(flat, MIDPOINTS.to(flat.device), BLOCK)
    else:
        packed, absmax = quantize_torch(flat)
    if not bool(torch.isfinite(absmax).all()):
        raise KernelError("the weight holds values that are not finite")
    target = weight.dtype if dtype is None else dtype
    shape = (weight.shape[0], weight.shape[1])
    code = NF4_CODE.to(flat.device)
    if not nested:
        return NF4Tensor(packed, absmax, code, None, None, 0.0, shape, target)
    # On the CPU, because the summation order of a mean differs between devices, and so would the bits.
    offset = absmax.cpu().mean()
    indices, nested_absmax = _quantize_scales(absmax - offset.to(absmax.device))
    nested_code = dynamic_code().to(flat.device)
    return NF4Tensor(packed, indices, code, nested_absmax, nested_code, offset.item(), shape, target)


def quantize_torch(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(packed u8, absmax f32) of a flat weight: quantisation in torch, `CHUNK` values at a time."""
    size = flat.numel()
    packed = torch.empty((size + 1) // 2, dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-size // BLOCK), dtype=torch.float32, device=flat.device)
    for start in range(0, size, CHUNK):
        values = flat[start : start + CHUNK].float()
        scaled, scales = _scale_blocks(values)
        absmax[start // BLOCK : start // BLOCK + scales.numel()] = scales
        index = _levels_below(F.pad(scaled, (0, scaled.numel() % 2)))
        packed[start // 2 : start // 2 + index.numel() // 2] = index[::2] << 4 | index[1::2]
    return packed, absmax


def _scale_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values [m] f32 over their block's largest magnitude, these magnitudes [ceil(m / 64)]).

    Rounding as in bitsandbytes: whole blocks are multiplied by a reciprocal; a short last block is divided,
    with a floor of 1e-38.
    """
    whole = values.numel() // BLOCK * BLOCK
    blocks = values[:whole].view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)
    if whole == values.numel():
        return scaled, absmax
    rest = values[whole:]
    last = rest.abs().amax().clamp(min=1e-38)
    return torch.cat((scaled, (rest / last).clamp_(-1, 1))), torch.cat((absmax, last[None]))


def _levels_below(scaled: Tensor) -> Tensor:
    """Index u8 of the nearest level of values in [-1, 1]; ties go down. Twice as fast as bucketize."""
    index = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    for midpoint in MIDPOINTS.tolist():
        index += (scaled > midpoint).view(torch.uint8)
    return index


def _quantize_scales(values: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit dynamic quantisation of f32 [m] in blocks of 256: (indices u8 [m], scales f32 [ceil(m / 256)]).

    [CODE] As the CPU kernel of bitsandbytes, this looks up the nearest level in a table over 65,536 steps of
    [-1, 1]. Rounding to the nearest level directly would differ for two scales in a thousand.
    """
    size = values.numel()
    blocks = F.pad(values, (0, -size % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    absmax = blocks.abs().amax(dim=1)
    inverse = torch.where(absmax > 0, 1.0 / absmax, torch.zeros_like(absmax))
    steps = (blocks * inverse[:, None]).add_(1.0).mul_(32767.5).add_(0.5).floor_()
    table = torch.arange(65536, dtype=torch.float64, device=values.device).mul_(2.0 / 65535).sub_(1.0).float()
    code = dynamic_code().to(values.device)
    levels = torch.bucketize(table, (code[:-1] + code[1:]) / 2).to(torch.uint8)
    indices = levels[steps.long().clamp_(0, 65535)] * (absmax > 0)[:, None]  # a block of zeros is all index 0
    return indices.view(-1)[:size].contiguous(), absmax


@cache
def dynamic_code() -> Tensor:
    """The 256 signed levels of dynamic 8-bit quantisation, f32, ascending.

    Level = sign * 10^(e - 6) * (centre of a cell of [0.1, 1] cut into 2^e cells), e = 0..6, with 0 and 1
    added. [PAPER] 8-bit Optimizers via Block-wise Quantization; [CODE] bitsandbytes `create_dynamic_map`.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1, dtype=torch.float32)
        centres = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        levels += centres.tolist() + (-centres).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nf4_nbytes(shape: tuple[int, int], nested: bool = True) -> int:
    """Bytes of an `NF4Tensor` of this shape, tables included; lets memory be planned before loading."""
    size = math.prod(shape)
    blocks = -(-size // BLOCK)
    scales = blocks + 4 * (-(-blocks // NESTED_BLOCK)) + 4 * 256 if nested else 4 * blocks
    return (size + 1) // 2 + scales + 4 * 16
