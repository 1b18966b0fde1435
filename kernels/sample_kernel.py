"""Sampling in Triton: one program per row, without a sort or scratch memory.

    weights        w = exp(z/τ - max z/τ), 0 where not allowed; recomputed in every pass, with the same bits;
                   the maximum is of the allowed tokens where they are far less probable (`DISTANT`)
    top-k, top-p   the largest t with #{w >= t} >= k, or with Σ{w >= t} w >= p Σ w
    min-p          w >= min_p max w
    draw           first token whose cumulative weight exceeds u Σ w: over tiles, then in one, in float64

Thresholds are found by a search over the bits of float32, which order as non-negative numbers do. Passes
split the interval in five, and end at one number or one weight: the kept set is exact. Filters apply in the
order mask, top-k, top-p (of what top-k kept), min-p. The bits of a row depend on that row alone.

Passes over a row: 2 (statistics, draw) and one tile; 1 for a mask; a search for top-k; a search and 3 for
top-p, 1 more if ties at its border must be counted. A search takes at most 13 passes (`ROUNDS`): for 152,064
normal logits of deviation 2 to 4, 6 to 8 in bfloat16, where ties abound, and about 9 in float32. Sampling
without a sort: FlashInfer, arXiv 2501.01005, which rejects and redraws; a search draws once.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from proactor.kernels.head_rows import LOWEST, TILES, row_statistics
from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import QWEN25, Launch, settings_for
from proactor.kernels.sample_thresholds import ROUNDS, allowed_top, largest_threshold, nucleus, tile_weights

DISTANT = 40.0
"""Where a mask's best token lies further below the row's best, weights are relative to the mask's best:
float32 would lose them otherwise (e^-87 is its smallest normal number).
"""


@jit
def draw_token(
    logits_ptr,
    allowed_ptr,
    width,
    scale,
    top,
    floor,
    border,
    last,
    peak,
    uniform,
    greedy,
    MASKED: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(id, sum of the kept weights); the id is the first of the largest weight if ``greedy``, else drawn."""
    index = tl.arange(0, COUNT)
    sums = tl.zeros([COUNT], tl.float32)
    first = tl.zeros([BLOCK], tl.int32) + width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        w = tile_weights(
            logits_ptr, allowed_ptr, start, width, scale, top, floor, border, last, MASKED, BLOCK
        )
        first = tl.minimum(first, tl.where((w > 0) & (w >= peak), column, width))
        sums = tl.where(index == start // BLOCK, tl.sum(w, 0), sums)
    wide = sums.to(tl.float64)
    mass = tl.sum(wide, 0)
    target = uniform * mass
    beyond = (tl.cumsum(wide, 0) > target) & (wide > 0)
    tile = tl.minimum(tl.min(tl.where(beyond, index, COUNT), 0), tl.max(tl.where(wide > 0, index, 0), 0))
    rest = tl.maximum(target - tl.sum(tl.where(index < tile, wide, 0.0), 0), 0.0)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    w = tile_weights(
        logits_ptr, allowed_ptr, tile * BLOCK, width, scale, top, floor, border, last, MASKED, BLOCK
    )
    beyond = (w > 0) & (tl.cumsum(w.to(tl.float64), 0) > rest)  # never a token of weight 0, despite rounding
    drawn = tl.minimum(tl.min(tl.where(beyond, column, width), 0), tl.max(tl.where(w > 0, column, 0), 0))
    return tl.where(greedy, tl.min(first, 0), drawn), mass


@jit
def sample_kernel(
    logits_ptr,
    allowed_ptr,
    temperature_ptr,
    uniform_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    ids_ptr,
    logp_ptr,
    policy_ptr,
    width,
    FILTERED: tl.constexpr,
    MASKED: tl.constexpr,
    COUNT: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
    DRAW: tl.constexpr,
    SEARCH: tl.constexpr,
    LOWEST: tl.constexpr,
    DISTANT: tl.constexpr,
):
    """Grid (rows), tiles [BLOCK] (statistics), [SEARCH], [DRAW]: token, filtered log p and policy log p.

    A row without a distribution gives id -1 and NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * width
    allowed = allowed_ptr + row * width
    temperature = tl.load(temperature_ptr + row)
    greedy = temperature <= 0
    scale = tl.div_rn(1.0, tl.where(greedy, 1.0, temperature))  # rounded by IEEE, as in the torch form
    top, total, _ = row_statistics(logits, width, scale, BLOCK, LOWEST)
    peak = tl.full([], 1.0, tl.float32)
    reference = top
    floor = tl.full([], 0.0, tl.float32)
    border = tl.full([], 0.0, tl.float32)
    last = tl.full([], 0, tl.int32) + width
    if MASKED:
        best = allowed_top(logits, allowed, width, scale, SEARCH, LOWEST)
        reference = tl.where((best > LOWEST) & (best < top - DISTANT), best, top)
        peak = tl.exp(best - reference)
    if FILTERED:
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        if top_k > 0:
            goal = tl.minimum(top_k, width).to(tl.float32)
            floor = largest_threshold(
                logits, allowed, width, scale, reference, 0.0, goal, True, ROUNDS, MASKED, SEARCH
            )
        if top_p < 1:
            border, last = nucleus(
                logits, allowed, width, scale, reference, floor, top_p, ROUNDS, MASKED, SEARCH
            )
        floor = tl.maximum(floor, tl.load(min_p_ptr + row) * peak)
    token, mass = draw_token(
        logits,
        allowed,
        width,
        scale,
        reference,
        floor,
        border,
        last,
        peak,
        tl.load(uniform_ptr + row),
        greedy,
        MASKED,
        COUNT,
        DRAW,
    )
    valid = (total > 0) & (total < float("inf")) & (mass > 0)
    z = tl.load(logits + tl.where(valid, token, 0)).to(tl.float32) * scale
    policy = tl.where(valid, (z - top) - tl.log(total), float("nan"))
    tl.store(ids_ptr + row, tl.where(valid, token, -1).to(tl.int64))
    tl.store(policy_ptr + row, policy)
    if FILTERED:
        share = tl.log(mass.to(tl.float32) / total)
        alone = (z - reference) - tl.log(mass.to(tl.float32))
        policy = tl.where(valid & (reference < top), alone, policy - share)
    tl.store(logp_ptr + row, policy)


class Settings(Protocol):
    """The fields of `sample.Filters`, which imports this module."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    allowed: Tensor | None


def launch_sample(
    logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Settings | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample.sample_tokens` of contiguous logits [B, V], which are only read; does not synchronise."""
    rows, width = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    policy = torch.empty(rows, dtype=torch.float32, device=logits.device)
    logp = torch.empty_like(policy)
    # without filters or a mask, the kernel does not read the pointers that stand in for them
    allowed, thresholds = ids, (ids, policy, policy)
    if filters is not None:
        thresholds = filters.top_k.long(), filters.top_p.float(), filters.min_p.float()
        if filters.allowed is not None:
            allowed = filters.allowed.contiguous().view(torch.uint8)
    tiles = settings_for(TILES, logits.device)
    if rows:
        inputs = temperature.contiguous(), uniform.contiguous(), *(t.contiguous() for t in thresholds)
        sample_kernel[(rows,)](
            *(logits, allowed, *inputs, ids, logp, policy, width),
            FILTERED=filters is not None,
            MASKED=filters is not None and filters.allowed is not None,
            COUNT=triton.next_power_of_2(triton.cdiv(width, tiles["draw"])),
            ROUNDS=ROUNDS,
            BLOCK=tiles["block"],
            DRAW=tiles["draw"],
            SEARCH=tiles["search"],
            LOWEST=LOWEST,
            DISTANT=DISTANT,
            num_warps=tiles["warps"],
            enable_fp_fusion=False,
        )
    return ids, logp, policy


def launches() -> list[Launch]:
    """What to compile: without filters, with them, and with a mask too."""
    types = {"logits_ptr": "*bf16", "allowed_ptr": "*u8", "uniform_ptr": "*fp64", "width": "i32"}
    types |= dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr", "logp_ptr", "policy_ptr"), "*fp32")
    types |= dict.fromkeys(("top_k_ptr", "ids_ptr"), "*i64")
    tiles = TILES["default"]
    count = 1 << (-(-QWEN25[0].vocabulary // tiles["draw"]) - 1).bit_length()
    sizes: dict[str, float] = {"BLOCK": tiles["block"], "DRAW": tiles["draw"], "SEARCH": tiles["search"]}
    sizes |= {"LOWEST": LOWEST, "DISTANT": DISTANT}
    compiled = []
    for filtered, masked in ((False, False), (True, False), (True, True)):
        constants = {"FILTERED": filtered, "MASKED": masked, "COUNT": count, "ROUNDS": ROUNDS} | sizes
        compiled.append(Launch(sample_kernel, types, constants, tiles["warps"], 1))
    return compiled
