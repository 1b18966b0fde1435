"""NF4 weights repacked for the fused linear: the same bits, in the order of a matrix instruction's operand.

A weight [N, K] becomes tiles [ceil(N / 64), ceil(K / 128)] of 64 rows x 16 words. Of a row's 128 columns,
word 2 t + h holds some of half h: nibble 2 i + e is column 64 h + 16 i + 2 t + e. A thread that owns columns
2 t and 2 t + 1 of each 16, as in a tensor core's operand, finds them in its own words; a tile is 4 KiB of
contiguous memory; each half has exactly one scale. Block scales are transposed, [ceil(K / 128) * 2, rows], so
that those of a tile are contiguous. Rows and columns are padded with the code of zero. Lossless: `unpack`
returns the original bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.jit import interpreted, jit, tl
from proactor.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4_CODE, NF4Tensor, dequantize_nf4
from proactor.kernels.nf4_decode import level_table
from proactor.kernels.nf4_kernels import round_half
from proactor.kernels.nf4_stack import Weights, check_stack, passes
from proactor.kernels.op import Launch, require, use_triton

TILE_ROWS, TILE_COLUMNS = 64, 128
ZERO_CODE = 7


@dataclass(frozen=True, slots=True)
class PackedNF4:
    """One or several NF4 weights [N_i, K], stacked by rows and repacked (layout: see the module).

    ``words`` i32 [tiles of rows, tiles of columns, 64, 16]; ``absmax`` u8 (nested) or f32
    [blocks of columns, padded rows]; ``nested_absmax`` and ``nested_offset`` f32, one each per 256 blocks,
    and ``nested_code`` f32 [256], or None; ``rows`` are the N_i, ``dtype`` the weights' before quantisation.
    """

    words: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None
    nested_code: Tensor | None
    offsets: tuple[float, ...]
    rows: tuple[int, ...]
    columns: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the stack."""
        return sum(self.rows), self.columns

    @property
    def nested(self) -> bool:
        """Whether the block scales are themselves quantised."""
        return self.nested_absmax is not None

    @property
    def device(self) -> torch.device:
        """The device of the bytes."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes held, scales and tables included."""
        parts = (self.words, self.absmax, self.nested_absmax, self.nested_offset, self.nested_code)
        return sum(part.nbytes for part in parts if part is not None)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [N, K] in ``dtype`` (default: its own), the bits of `NF4Tensor.dequantize`."""
        return dequantize_packed(self, dtype)


def can_repack(*weights: NF4Tensor) -> bool:
    """Whether `repack` takes these weights together."""
    return passes(_check, weights)


def _check(weights: Weights) -> None:
    check_stack(weights)
    first = weights[0]
    for i, w in enumerate(weights):
        require(w.blocksize == BLOCK, "weights", f"blocksize {w.blocksize}: only {BLOCK} can be repacked")
        require(w.shape[0] > 0 and w.shape[1] > 0, "weights", f"shape {w.shape} is empty")
        require(w.nested == first.nested, "weights", "nested and single-level scales together")
        if w.nested_code is not None and first.nested_code is not None:
            require(w.nested_blocksize == NESTED_BLOCK, "weights", f"nested_blocksize {w.nested_blocksize}")
            equal = torch.equal(w.nested_code, first.nested_code)
            require(equal, "weights", "nested_code differs between them")
        if i + 1 < len(weights):  # the next weight must start on a tile, and on a nested block
            aligned = w.shape[0] % TILE_ROWS == 0 and (not w.nested or w.absmax.numel() % NESTED_BLOCK == 0)
            problem = f"shape {w.shape} fills no whole tiles or nested blocks: repack it alone"
            require(aligned, "weights", problem)


def repack(*weights: NF4Tensor) -> PackedNF4:
    """The weights [N_i, K], stacked by rows, in the layout of the fused linear; no bit changes.

    Raises KernelError ("weights: ...") for a block size other than 64, K not a multiple of 64, levels that
    are not NF4's, and weights that cannot be stacked: they differ in K, dtype, device or kind of scales, or
    one before the last has a row count that is not a multiple of 64, or nested blocks not of 256.
    """
    _check(weights)
    columns = weights[0].shape[1]
    words = torch.cat([_tiles(w) for w in weights])
    blocks = columns // BLOCK
    scales = torch.cat([w.absmax.view(-1, blocks) for w in weights])
    pad = (0, -blocks % 2, 0, -scales.shape[0] % TILE_ROWS)
    nested = [w.nested_absmax for w in weights if w.nested_absmax is not None]
    offsets = [torch.full_like(c, w.nested_offset) for c, w in zip(nested, weights)]
    return PackedNF4(
        words=words,
        absmax=F.pad(scales, pad).t().contiguous(),
        nested_absmax=torch.cat(nested) if nested else None,
        nested_offset=torch.cat(offsets) if nested else None,
        nested_code=weights[0].nested_code,
        offsets=tuple(w.nested_offset for w in weights),
        rows=tuple(w.shape[0] for w in weights),
        columns=columns,
        dtype=weights[0].dtype,
    )


def _tiles(weight: NF4Tensor) -> Tensor:
    n, k = weight.shape
    codes = torch.stack((weight.packed >> 4, weight.packed & 15), 1).view(-1)[: n * k].view(n, k)
    codes = F.pad(codes, (0, -k % TILE_COLUMNS, 0, -n % TILE_ROWS), value=ZERO_CODE)
    # row tile, row, column tile, half, slice i, pair t, e -> row tile, column tile, row, t, half, i, e
    split = codes.view(codes.shape[0] // TILE_ROWS, TILE_ROWS, codes.shape[1] // TILE_COLUMNS, 2, 4, 8, 2)
    ordered = split.permute(0, 2, 1, 5, 3, 4, 6).contiguous()
    low, high = ordered[..., 0], ordered[..., 1]  # little-endian words: byte i holds nibbles 2 i and 2 i + 1
    return (low | high << 4).contiguous().view(torch.int32).view(*ordered.shape[:3], 16)


def unpack(packed: PackedNF4) -> tuple[NF4Tensor, ...]:
    """The weights that `repack` took, bit for bit."""
    (n, k), blocks = packed.shape, packed.columns // BLOCK
    words = packed.words.view(*packed.words.shape[:2], TILE_ROWS, 8, 2, 1)
    tiles = words.view(torch.uint8)  # [row tile, column tile, row, t, half, i]
    codes = torch.stack((tiles & 15, tiles >> 4), -1).permute(0, 2, 1, 4, 5, 3, 6)
    codes = codes.reshape(packed.words.shape[0] * TILE_ROWS, -1)[:n, :k]
    scales = packed.absmax.t()[:n, :blocks]
    weights, row, nested_at = [], 0, 0
    for count, offset in zip(packed.rows, packed.offsets):
        flat = codes[row : row + count].reshape(-1)
        nested = -(-count * blocks // NESTED_BLOCK)
        coarse = None
        if packed.nested_absmax is not None:
            coarse = packed.nested_absmax[nested_at : nested_at + nested].clone()
        stored = flat[::2] << 4 | flat[1::2], scales[row : row + count].reshape(-1).contiguous()
        code = NF4_CODE.to(packed.device)
        weights.append(NF4Tensor(*stored, code, coarse, packed.nested_code, offset, (count, k), packed.dtype))
        row, nested_at = row + count, nested_at + nested
    return tuple(weights)


def dequantize_packed(packed: PackedNF4, dtype: torch.dtype | None = None) -> Tensor:
    """The weight [N, K] in ``dtype`` (default: its own) from repacked words: the bits of `dequantize_nf4`."""
    target = packed.dtype if dtype is None else dtype
    if not use_triton(packed.words):
        return torch.cat([dequantize_nf4(part, target) for part in unpack(packed)])
    out = torch.empty(packed.shape, dtype=target, device=packed.device)
    row_tiles, chunks = packed.words.shape[:2]
    tensors = packed.words, *scale_arguments(packed), level_table(torch.float32, packed.device), out
    constants = {"NESTED": packed.nested, "WIDE": interpreted()}
    dequantize_packed_kernel[(row_tiles, 2 * chunks)](
        *tensors, *packed.shape, packed.absmax.shape[1], **constants, num_warps=4, enable_fp_fusion=False
    )
    return out


def scale_arguments(packed: PackedNF4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(absmax, nested_code, nested_absmax, nested_offset) for a kernel; absmax stands in for missing ones."""
    nested = (packed.nested_code, packed.nested_absmax, packed.nested_offset)
    return (packed.absmax, *(packed.absmax if part is None else part for part in nested))  # type: ignore[return-value]


# --- Triton ---


@jit
def raw_scales(scale_ptr, block, blocks, rows, n):
    """Stored scales [len(n)] of column block ``block`` of the rows ``n``; 0 past the ends."""
    end = tl.where(block < blocks, rows, 0)
    return tl.load(scale_ptr + tl.cast(block, tl.int64) * rows + n, mask=n < end, other=0)


@jit
def expand_scales(raw, code_ptr, coarse_ptr, offset_ptr, block, blocks, n, N, NESTED: tl.constexpr):
    """float32 scales of `raw_scales`: code[raw] * nested_absmax + nested_offset if NESTED, else raw."""
    if NESTED:
        at = (n.to(tl.int64) * blocks + block) >> 8
        inside = n < tl.where(block < blocks, N, 0)
        scale = tl.load(code_ptr + raw.to(tl.int32)) * tl.load(coarse_ptr + at, mask=inside, other=0.0)
        scale += tl.load(offset_ptr + at, mask=inside, other=0.0)
    else:
        scale = raw
    return scale


@jit
def dequantize_packed_kernel(
    words_ptr,
    scale_ptr,
    code_ptr,
    coarse_ptr,
    offset_ptr,
    levels_ptr,
    out_ptr,
    N,
    K,
    rows,
    NESTED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (row tiles, halves of column tiles), tile [64, 64]: out [N, K].

    Compile without multiply-add fusion: a nested scale is rounded twice, after the product and after the sum.
    """
    block = tl.program_id(1)
    n = tl.program_id(0) * 64 + tl.arange(0, 64)
    column = tl.arange(0, 64)
    tile = (tl.program_id(0).to(tl.int64) * (tl.num_programs(1) // 2) + block // 2) * 1024
    word = ((column >> 1) & 7) * 2 + (block & 1)
    nibble = (column >> 4) * 2 + (column & 1)
    words = tl.load(words_ptr + tile + (n % 64)[:, None] * 16 + word[None, :])
    level = tl.load(levels_ptr + ((words >> (4 * nibble)[None, :]) & 15))
    blocks = K // 64
    raw = raw_scales(scale_ptr, block, blocks, rows, n)
    scale = expand_scales(raw, code_ptr, coarse_ptr, offset_ptr, block, blocks, n, N, NESTED)
    at = out_ptr + n.to(tl.int64)[:, None] * K + block * 64 + column[None, :]
    inside = (n < tl.where(block < blocks, N, 0))[:, None]
    tl.store(at, round_half(level * scale[:, None], out_ptr.dtype.element_ty, WIDE), mask=inside)


SCALE_TYPES = {"scale_ptr": "*u8", "code_ptr": "*fp32", "coarse_ptr": "*fp32", "offset_ptr": "*fp32"}
TYPES = SCALE_TYPES | {"words_ptr": "*i32", "levels_ptr": "*fp32", "out_ptr": "*bf16"}
LAUNCHES = [
    Launch(
        dequantize_packed_kernel,
        TYPES | dict.fromkeys(("N", "K", "rows"), "i32"),
        {"NESTED": True, "WIDE": False},
    )
]
