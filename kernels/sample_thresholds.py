"""Device functions of the sampling kernel: weights of a tile, exact thresholds of top-k and top-p.

Both thresholds are found by a search over the bits of float32, which order as non-negative numbers do; the
module `sample_kernel` gives the formulas.
"""

from __future__ import annotations

from proactor.kernels.jit import jit, tl

ROUNDS = 13
"""5^13 is above 2^30, the number of float32 from 0 to 2."""


@jit
def tile_weights(
    logits_ptr,
    allowed_ptr,
    start,
    width,
    scale,
    top,
    floor,
    border,
    last,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weights [BLOCK] of the tile at ``start``: 0 outside the row and for excluded tokens.

    Excluded: not allowed (MASKED), below ``floor`` or ``border``, or a tie at ``border`` after id ``last``.
    """
    column = start + tl.arange(0, BLOCK)
    inside = column < width
    z = tl.load(logits_ptr + column, mask=inside, other=float("-inf")).to(tl.float32) * scale
    w = tl.exp(z - top)
    kept = inside & (w >= floor) & ((w > border) | ((w == border) & (column <= last)))
    if MASKED:
        kept = kept & (tl.load(allowed_ptr + column, mask=inside, other=0) != 0)
    return tl.where(kept, w, 0.0)


@jit
def allowed_top(logits_ptr, allowed_ptr, width, scale, BLOCK: tl.constexpr, LOWEST: tl.constexpr):
    """Largest scaled logit of the allowed tokens, tile [BLOCK]; LOWEST if there is none."""
    highest = tl.full([BLOCK], LOWEST, tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        z = tl.load(logits_ptr + column, mask=inside, other=float("-inf")).to(tl.float32) * scale
        kept = inside & (tl.load(allowed_ptr + column, mask=inside, other=0) != 0)
        highest = tl.maximum(highest, tl.where(kept, z, LOWEST))
    return tl.max(highest, 0)


@jit
def largest_threshold(
    logits_ptr,
    allowed_ptr,
    width,
    scale,
    top,
    floor,
    goal,
    COUNT: tl.constexpr,
    ROUNDS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest t for which the weights >= t (their number if COUNT, else their sum) reach ``goal``, or 0.

    The search splits an interval of bit patterns in five per pass, with tiles [BLOCK]. A sum over fewer
    weights in the same order is never larger, rounded or not, so its comparisons are consistent. The answer
    is one of the weights: once the weights of an interval are all equal, the search ends.
    """
    low = tl.full([], 0, tl.int32)
    step = tl.full([], 5, tl.int32)
    for _ in tl.static_range(ROUNDS - 2):
        step *= 5
    while step > 0:
        a = tl.zeros([BLOCK], tl.float32)
        b = tl.zeros([BLOCK], tl.float32)
        c = tl.zeros([BLOCK], tl.float32)
        d = tl.zeros([BLOCK], tl.float32)
        least = tl.full([BLOCK], 2147483647, tl.int32)
        most = tl.zeros([BLOCK], tl.int32)
        for start in range(0, width, BLOCK):
            w = tile_weights(
                logits_ptr, allowed_ptr, start, width, scale, top, floor, 0.0, width, MASKED, BLOCK
            )
            bits = w.to(tl.int32, bitcast=True)
            amount = tl.where(w > 0, 1.0, 0.0) if COUNT else w
            a += tl.where(bits >= low + step, amount, 0.0)
            b += tl.where(bits >= low + 2 * step, amount, 0.0)
            c += tl.where(bits >= low + 3 * step, amount, 0.0)
            d += tl.where(bits >= low + 4 * step, amount, 0.0)
            least = tl.minimum(least, tl.where(bits >= low, bits, 2147483647))
            most = tl.maximum(most, tl.where(bits < low + 5 * step, bits, 0))
        passed = (tl.sum(a, 0) >= goal).to(tl.int32) + (tl.sum(b, 0) >= goal).to(tl.int32)
        passed += (tl.sum(c, 0) >= goal).to(tl.int32) + (tl.sum(d, 0) >= goal).to(tl.int32)
        only = tl.min(least, 0)
        settled = only == tl.max(most, 0)
        low = tl.where(settled, only, low + passed * step)
        step = tl.where(settled, 0, step // 5)
    return low.to(tl.float32, bitcast=True)


@jit
def row_sum(
    logits_ptr,
    allowed_ptr,
    width,
    scale,
    top,
    floor,
    border,
    EQUAL: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of the weights >= ``floor`` that are above ``border``; if EQUAL, the number equal to ``border``."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        w = tile_weights(logits_ptr, allowed_ptr, start, width, scale, top, floor, 0.0, width, MASKED, BLOCK)
        total += tl.where(w == border, 1.0, 0.0) if EQUAL else tl.where(w > border, w, 0.0)
    return tl.sum(total, 0)


@jit
def nucleus(
    logits_ptr,
    allowed_ptr,
    width,
    scale,
    top,
    floor,
    share,
    ROUNDS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Top-p: (border, last id kept of the weights equal to it).

    The nucleus is the fewest largest weights whose sum reaches ``share`` of the sum of all >= ``floor``.
    """
    total = row_sum(logits_ptr, allowed_ptr, width, scale, top, floor, 0.0, False, MASKED, BLOCK)
    goal = tl.maximum(share * total, 1.2e-38)  # above 0: the largest weight is always kept
    border = largest_threshold(
        logits_ptr, allowed_ptr, width, scale, top, floor, goal, False, ROUNDS, MASKED, BLOCK
    )
    # a tensor even if the compiler takes a width of 1 for a constant
    last = tl.full([], 0, tl.int32) + width
    if border > 0:
        above = row_sum(logits_ptr, allowed_ptr, width, scale, top, floor, border, False, MASKED, BLOCK)
        equal = row_sum(logits_ptr, allowed_ptr, width, scale, top, floor, border, True, MASKED, BLOCK)
        quota = tl.maximum(tl.ceil((goal - above) / border), 1.0)
        if equal > quota:
            last = tl.full([], 0, tl.int32)
            before = tl.full([], 0, tl.int32)
            for start in range(0, width, BLOCK):
                column = start + tl.arange(0, BLOCK)
                w = tile_weights(
                    logits_ptr, allowed_ptr, start, width, scale, top, floor, 0.0, width, MASKED, BLOCK
                )
                tie = (w == border).to(tl.int32)
                rank = before + tl.cumsum(tie, 0)
                last = tl.maximum(last, tl.max(tl.where((tie > 0) & (rank <= quota), column, 0), 0))
                before += tl.sum(tie, 0)
    return border, last
