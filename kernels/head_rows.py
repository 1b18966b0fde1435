"""Two Triton passes over a chunk of logits [R, V]: log p and entropy of its pairs, and the logits' gradient.

    values    m = max z/τ,   s = Σ exp(z/τ - m),   log p = (z_y/τ - m) - log s
              entropy = log s - Σ exp(z/τ - m)(z/τ - m) / s
    slopes    dz = (Σ_pairs g onehot(y) - (Σ_pairs g) p - (Σ_pairs e) p (l + entropy)) / τ,   in place of z
              l = z/τ - lse, p = exp(l);   g, e: the gradients of a pair's log p and of its entropy

One program owns a row (values) or a tile of a row (slopes), and takes its pairs in order. There are no
atomics, so a row has the same bits in any batch. Maximum and sum are computed online (Milakov & Gimelshein,
arXiv 1805.02867): values read the logits once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.kernels.jit import jit, jit_any, tl, triton
from proactor.kernels.op import Launch, settings_for

# The sampler sums a row in the same tiles: equal logits of one dtype then give equal log-probabilities.
TILES = {
    "default": {"block": 8192, "draw": 2048, "search": 1024, "warps": 16},
    "interpreter": {"block": 64, "draw": 32, "search": 128, "warps": 1},
}
SLOPES = {"default": {"block": 4096, "warps": 8}, "interpreter": {"block": 64, "warps": 1}}
PAIRS = 16
LOWEST = -1e30
"""Maximum of an empty row: finite, so that differences are not NaN."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows and pairs on the device: 1/temperature float32 [R], offsets int64 [R + 1], target int64 [P]."""

    scale: Tensor
    offsets: Tensor
    target: Tensor


def pair_offsets(row: Tensor, rows: int) -> Tensor:
    """Offsets int64 [rows + 1] from ascending ``row`` [P]: row r has pairs offsets[r] to offsets[r + 1]."""
    return torch.searchsorted(row, torch.arange(rows + 1, device=row.device))


@jit
def row_statistics(row_ptr, width, scale, BLOCK: tl.constexpr, LOWEST: tl.constexpr):
    """(m, Σ w, Σ w d) of one row z, tile [BLOCK]: m = max z scale, d = z scale - m, w = exp(d).

    A NaN or +inf logit makes the sums NaN.
    """
    top = tl.full([], LOWEST, tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    moments = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(row_ptr + column, mask=column < width, other=float("-inf")).to(tl.float32) * scale
        above = tl.maximum(top, tl.max(z, 0))
        shift = top - above
        factor = tl.exp(shift)
        d = z - above
        w = tl.exp(d)
        moments = (moments + sums * shift) * factor + w * tl.where(w > 0, d, 0.0)  # 0 * -inf is not 0
        sums = sums * factor + w
        top = above
    return top, tl.sum(sums, 0), tl.sum(moments, 0)


@jit_any("start")
def logprob_values_kernel(
    logits_ptr,
    scale_ptr,
    offset_ptr,
    target_ptr,
    logp_ptr,
    entropy_ptr,
    lse_ptr,
    start,
    width,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """Grid (rows of the chunk), tile [BLOCK columns]: lse of a row, log p and entropy of its pairs.

    The chunk [R, V] begins at row ``start``.
    """
    local = tl.program_id(0).to(tl.int64)
    row = start + local
    logits = logits_ptr + local * width
    scale = tl.load(scale_ptr + row)
    top, total, moment = row_statistics(logits, width, scale, BLOCK, LOWEST)
    log_total = tl.log(total)
    tl.store(lse_ptr + row, top + log_total)
    entropy = log_total - moment / total
    first = tl.load(offset_ptr + row)
    last = tl.load(offset_ptr + row + 1)
    for at in range(first, last, PAIRS):
        pair = at + tl.arange(0, PAIRS)
        inside = pair < last
        target = tl.load(target_ptr + pair, mask=inside, other=0)
        z = tl.load(logits + target, mask=inside, other=0.0).to(tl.float32) * scale
        tl.store(logp_ptr + pair, (z - top) - log_total, mask=inside)
        tl.store(entropy_ptr + pair, tl.zeros([PAIRS], tl.float32) + entropy, mask=inside)


@jit_any("start")
def logprob_slopes_kernel(
    logits_ptr,
    scale_ptr,
    offset_ptr,
    target_ptr,
    dlogp_ptr,
    lse_ptr,
    dentropy_ptr,
    entropy_ptr,
    start,
    width,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows of the chunk, ceil(V / BLOCK)), tile [BLOCK]: overwrites logits with their gradient.

    ENTROPY: that of the entropies, ``dentropy`` [P], too; ``entropy`` [P] then holds their values.
    """
    local = tl.program_id(0).to(tl.int64)
    row = start + local
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = logits_ptr + local * width + column
    scale = tl.load(scale_ptr + row)
    z = tl.load(at, mask=inside, other=0.0).to(tl.float32) * scale
    logp = z - tl.load(lse_ptr + row)
    p = tl.exp(logp)
    pull = tl.full([], 0.0, tl.float32)
    spread = tl.full([], 0.0, tl.float32)
    level = tl.full([], 0.0, tl.float32)
    hot = tl.zeros([BLOCK], tl.float32)
    for pair in range(tl.load(offset_ptr + row), tl.load(offset_ptr + row + 1)):
        g = tl.load(dlogp_ptr + pair).to(tl.float32)
        pull += g
        hot += tl.where(column == tl.load(target_ptr + pair), g, 0.0)
        if ENTROPY:
            spread += tl.load(dentropy_ptr + pair).to(tl.float32)
            level = tl.load(entropy_ptr + pair).to(tl.float32)  # the row's, in each of its pairs
    dz = hot - pull * p
    if ENTROPY:
        dz -= spread * p * tl.where(p > 0, logp + level, 0.0)  # 0 * -inf is not 0
    tl.store(at, dz * scale, mask=inside)


def launch_values(logits: Tensor, start: int, rows: Rows, logp: Tensor, entropy: Tensor, lse: Tensor) -> None:
    """Fill lse [R], log p [P] and entropy [P] from a chunk's contiguous logits, which begin at ``start``."""
    count, width = logits.shape
    if count:
        tiles = settings_for(TILES, logits.device)
        tensors = logits, rows.scale, rows.offsets, rows.target, logp, entropy, lse
        constants = {"BLOCK": tiles["block"], "PAIRS": PAIRS, "LOWEST": LOWEST}
        logprob_values_kernel[(count,)](
            *tensors, start, width, **constants, num_warps=tiles["warps"], enable_fp_fusion=False
        )


def launch_slopes_(
    logits: Tensor,
    start: int,
    rows: Rows,
    lse: Tensor,
    dlogp: Tensor,
    entropies: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Overwrite a chunk's contiguous logits with their gradient, given that of log p [P].

    ``entropies``: the gradient of the pairs' entropies [P], and their values [P].
    """
    count, width = logits.shape
    if count:
        tiles = settings_for(SLOPES, logits.device)
        tensors = logits, rows.scale, rows.offsets, rows.target, dlogp, lse, *(entropies or (dlogp, dlogp))
        logprob_slopes_kernel[(count, triton.cdiv(width, tiles["block"]))](
            *tensors, start, width, entropies is not None, tiles["block"], num_warps=tiles["warps"]
        )


def launches() -> list[Launch]:
    """Both kernels; their sizes do not depend on the model."""
    shared = {"logits_ptr": "*bf16", "scale_ptr": "*fp32", "lse_ptr": "*fp32"}
    shared |= {"offset_ptr": "*i64", "target_ptr": "*i64", "start": "i32", "width": "i32"}
    value_types = shared | {"logp_ptr": "*fp32", "entropy_ptr": "*fp32"}
    slope_types = shared | dict.fromkeys(("dlogp_ptr", "dentropy_ptr", "entropy_ptr"), "*fp32")
    values, slopes = TILES["default"], SLOPES["default"]
    constants = {"BLOCK": values["block"], "PAIRS": PAIRS, "LOWEST": LOWEST}
    return [
        Launch(logprob_values_kernel, value_types, constants, values["warps"], 1),
        *(
            Launch(
                logprob_slopes_kernel,
                slope_types,
                {"ENTROPY": entropy, "BLOCK": slopes["block"]},
                slopes["warps"],
                1,
            )
            for entropy in (False, True)
        ),
    ]
