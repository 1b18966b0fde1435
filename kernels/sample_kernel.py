"""Sampling in Triton: one program a row, no sort, no scratch memory, the logits read in tiles as often as the
settings need.

    w = exp(z/τ - max z/τ)  (0 where not allowed), computed anew in every pass, the same bits each time
    top-k, top-p   the largest threshold t with #{w >= t} >= k, and with Σ{w >= t} w >= p Σ w, by a search over the bits of float32, which order as
                   non-negative numbers do: passes that split the interval in five end at one number, or at
                   one weight, so that the kept set is exact
    min-p          w >= min_p max w
    draw           first token whose cumulative weight passes u Σ w: sums of tiles, then one tile, both in float64

Passes over a row: 2 (statistics, draw) and a tile; 1 for a mask; a search for top-k; a search and 3 for
top-p, 1 more where equals at its border must be counted off. A search takes 13 (`ROUNDS`) at most; for
152,064 normal logits of deviation 2 to 4 it is 6 to 8 in bfloat16, where equals abound, and about 9 in
float32.

Filters apply in the order mask, top-k, top-p (of what top-k kept), min-p. A row's bits depend on that row
alone. (Sampling without sorting by a search over thresholds: FlashInfer's sampling kernels, arXiv 2501.01005,
which reject and redraw; a search draws once.)
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from proactor.kernels.head_rows import LOWEST, TILES, row_statistics
from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import QWEN25, Launch, settings_for
from proactor.kernels.sample_thresholds import ROUNDS, largest_threshold, nucleus, tile_weights


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
    """(id, mass of what is kept): the first id of the largest weight if ``greedy``, else the inverse of the
    distribution at ``uniform``.
    """
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
    passes = (tl.cumsum(wide, 0) > target) & (wide > 0)
    tile = tl.minimum(tl.min(tl.where(passes, index, COUNT), 0), tl.max(tl.where(wide > 0, index, 0), 0))
    rest = tl.maximum(target - tl.sum(tl.where(index < tile, wide, 0.0), 0), 0.0)
    column = tile * BLOCK + tl.arange(0, BLOCK)
    w = tile_weights(
        logits_ptr, allowed_ptr, tile * BLOCK, width, scale, top, floor, border, last, MASKED, BLOCK
    )
    hit = (w > 0) & (tl.cumsum(w.to(tl.float64), 0) > rest)  # never one of weight 0, whatever rounding does
    drawn = tl.minimum(tl.min(tl.where(hit, column, width), 0), tl.max(tl.where(w > 0, column, 0), 0))
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
):
    """One program a row: token, its log-probability among what is kept and in the full softmax; id -1 and NaN
    without a distribution.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * width
    allowed = allowed_ptr + row * width
    temperature = tl.load(temperature_ptr + row)
    greedy = temperature <= 0
    scale = tl.div_rn(1.0, tl.where(greedy, 1.0, temperature))  # as the torch form: IEEE
    top, total, _ = row_statistics(logits, width, scale, BLOCK, LOWEST)
    peak = tl.full([], 1.0, tl.float32)
    floor = tl.full([], 0.0, tl.float32)
    border = tl.full([], 0.0, tl.float32)
    last = tl.full([], 0, tl.int32) + width
    if MASKED:
        highest = tl.zeros([SEARCH], tl.float32)
        for start in range(0, width, SEARCH):
            w = tile_weights(logits, allowed, start, width, scale, top, 0.0, 0.0, width, MASKED, SEARCH)
            highest = tl.maximum(highest, w)
        peak = tl.max(highest, 0)
    if FILTERED:
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        if top_k > 0:
            goal = tl.minimum(top_k, width).to(tl.float32)
            floor = largest_threshold(
                logits, allowed, width, scale, top, 0.0, goal, True, ROUNDS, MASKED, SEARCH
            )
        if top_p < 1:
            border, last = nucleus(logits, allowed, width, scale, top, floor, top_p, ROUNDS, MASKED, SEARCH)
        floor = tl.maximum(floor, tl.load(min_p_ptr + row) * peak)
    token, mass = draw_token(
        logits,
        allowed,
        width,
        scale,
        top,
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
    good = (total > 0) & (total < float("inf")) & (mass > 0)
    z = tl.load(logits + tl.where(good, token, 0)).to(tl.float32) * scale
    policy = tl.where(good, (z - top) - tl.log(total), float("nan"))
    tl.store(ids_ptr + row, tl.where(good, token, -1).to(tl.int64))
    tl.store(policy_ptr + row, policy)
    if FILTERED:
        policy -= tl.log(mass.to(tl.float32) / total)
    tl.store(logp_ptr + row, policy)


class Settings(Protocol):
    """What `sample.Filters` holds."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    allowed: Tensor | None


def launch_sample(
    logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Settings | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample.sample_tokens` of contiguous logits [B, V], which are only read; nothing waits for the
    device.
    """
    rows, width = logits.shape
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    policy = torch.empty(rows, dtype=torch.float32, device=logits.device)
    logp = torch.empty_like(policy)
    masked = filters is not None and filters.allowed is not None
    allowed = (
        filters.allowed.contiguous().view(torch.uint8)
        if filters is not None and filters.allowed is not None
        else ids
    )
    given = (
        (ids, policy, policy)
        if filters is None
        else (filters.top_k.long(), filters.top_p.float(), filters.min_p.float())
    )
    tiles = settings_for(TILES, logits.device)
    if rows:
        sample_kernel[(rows,)](
            logits,
            allowed,
            temperature.contiguous(),
            uniform.contiguous(),
            *(g.contiguous() for g in given),
            ids,
            logp,
            policy,
            width,
            filters is not None,
            masked,
            triton.next_power_of_2(triton.cdiv(width, tiles["draw"])),
            ROUNDS,
            tiles["block"],
            tiles["draw"],
            tiles["search"],
            LOWEST,
            num_warps=tiles["warps"],
            enable_fp_fusion=False,
        )
    return ids, logp, policy


def launches() -> list[Launch]:
    """Without filters, with them, and with a mask."""
    types = {
        "logits_ptr": "*bf16",
        "allowed_ptr": "*u8",
        "temperature_ptr": "*fp32",
        "uniform_ptr": "*fp64",
        "top_k_ptr": "*i64",
        "top_p_ptr": "*fp32",
        "min_p_ptr": "*fp32",
        "ids_ptr": "*i64",
        "logp_ptr": "*fp32",
        "policy_ptr": "*fp32",
        "width": "i32",
    }
    tiles = TILES["default"]
    count = 1 << (-(-QWEN25[0].vocabulary // tiles["draw"]) - 1).bit_length()
    found = []
    for filtered, masked in ((False, False), (True, False), (True, True)):
        constants: dict[str, float] = {
            "FILTERED": filtered,
            "MASKED": masked,
            "COUNT": count,
            "ROUNDS": ROUNDS,
        }
        constants |= {
            "BLOCK": tiles["block"],
            "DRAW": tiles["draw"],
            "SEARCH": tiles["search"],
            "LOWEST": LOWEST,
        }
        found.append(Launch(sample_kernel, types, constants, tiles["warps"], 1))
    return found
