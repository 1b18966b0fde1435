"""Token sampling: temperature, top-k, top-p and min-p, with keyed noise (`noise`).

Each row has its own uniform, so a token does not depend on its batch. The token is the inverse of the
cumulative distribution at that uniform, found in two levels of sums. `sample_kernel` is the Triton form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.logprob import TRITON_DTYPES, exponentials_
from proactor.kernels.noise import keyed_uniforms, philox, uniforms
from proactor.kernels.op import Arguments, Case, ModelShape, Op, require, use_triton
from proactor.kernels.sample_kernel import DISTANT, launch_sample, launches

__all__ = [
    "SAMPLE",
    "Filters",
    "check_drawn",
    "draw",
    "filter_weights",
    "keyed_uniforms",
    "philox",
    "sample_tokens",
    "uniforms",
]

CDF_BLOCK = 64
"""Tokens per block of the first level of sums."""
FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(slots=True)
class Filters:
    """Per-row settings [B]: top_k int64 (0: off), top_p, min_p float32; ``allowed`` bool [B, V] or None."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    allowed: Tensor | None = None


def filter_weights(probs: Tensor, filters: Filters, stable: bool = False) -> Tensor:
    """Unnormalised probabilities [B, V] with excluded tokens set to 0, as in transformers.

    Filters apply in the order allowed, top-k, top-p, min-p. Ties at the top-k threshold are all kept. Of ties
    at the end of a nucleus, as many are kept as its mass needs: the lowest ids if ``stable``. The most
    probable allowed token is always kept.
    """
    probs = probs.clone() if filters.allowed is None else probs * filters.allowed
    if bool((filters.top_k > 0).any()):
        k = torch.where(filters.top_k > 0, filters.top_k, probs.shape[1]).clamp(max=probs.shape[1])
        best = probs.topk(int(k[filters.top_k > 0].max()), dim=-1).values
        threshold = best.gather(1, (k - 1).clamp(max=best.shape[1] - 1).unsqueeze(1))
        probs.masked_fill_((probs < threshold) & (filters.top_k > 0).unsqueeze(1), 0.0)
    if bool((filters.top_p < 1).any()):
        ordered, index = probs.sort(dim=-1, descending=True, stable=stable)
        before = ordered.cumsum(-1) - ordered
        drop = before >= filters.top_p.unsqueeze(1) * ordered.sum(-1, keepdim=True)
        drop[:, 0] = False
        drop &= (filters.top_p < 1).unsqueeze(1)
        probs.masked_fill_(torch.zeros_like(drop).scatter_(1, index, drop), 0.0)
    if bool((filters.min_p > 0).any()):
        probs.masked_fill_(probs < filters.min_p.unsqueeze(1) * probs.amax(-1, keepdim=True), 0.0)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Token ids int64 [B]: the inverse CDF of weights probs [B, V] >= 0 at ``uniform`` float64 [B].

    A token of weight 0 is never drawn.
    """
    b, v = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -v % CDF_BLOCK)) if v % CDF_BLOCK else probs
    blocks = padded.view(b, padded.shape[1] // CDF_BLOCK, CDF_BLOCK)
    sums = blocks.sum(-1).double()
    edges = sums.cumsum(-1)
    target = uniform * edges[:, -1]
    block = _index(edges, sums, target)
    rows = torch.arange(b, device=probs.device)
    inner = blocks[rows, block].double()
    # clamped, because rounding must not select a leading token of weight 0
    rest = (target - (edges[rows, block] - sums[rows, block])).clamp_(min=0)
    return block * CDF_BLOCK + _index(inner.cumsum(-1), inner, rest)


def _index(edges: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds ``target``, at most the last of positive weight."""
    counts = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    last = ((weights > 0) * counts).amax(-1) - 1
    return torch.minimum((edges <= target.unsqueeze(1)).sum(-1), last)


def sample_reference(
    logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Filters | None = None, stable: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_tokens` in torch; overwrites ``logits``."""
    greedy = temperature <= 0
    divisor = torch.where(greedy, 1.0, temperature)
    if not bool((divisor == 1).all()):
        logits.mul_(divisor.reciprocal().unsqueeze(1))
    weights, total = exponentials_(logits)
    filtered = weights if filters is None else filter_weights(weights, filters, stable)
    mass = total if filters is None else filtered.sum(-1)
    best = None if filters is None else _distant_best(logits, filters.allowed, mass)
    if filters is not None and best is not None:
        # inf stands only at tokens that are not allowed, but inf * 0 is not 0
        weights = (logits - best.unsqueeze(1)).exp().clamp_(max=FLOAT32_MAX)
        filtered = filter_weights(weights, filters, stable)
        mass = filtered.sum(-1)
    _require_rows((mass > 0) & total.isfinite())
    if bool(greedy.all()):
        ids = filtered.argmax(-1)
    else:
        ids = draw(filtered, uniform)
        if bool(greedy.any()):
            ids = torch.where(greedy, filtered.argmax(-1), ids)
    drawn = logits.gather(1, ids.unsqueeze(1)).squeeze(1)
    policy = drawn - total.log()
    if filters is None:
        return ids, policy, policy
    logp = policy - (mass / total).log()
    return ids, logp if best is None else torch.where(best < 0, drawn - best - mass.log(), logp), policy


def _distant_best(logits: Tensor, allowed: Tensor | None, mass: Tensor) -> Tensor | None:
    """The best allowed logit [B] of rows where it lies below -`DISTANT`, else 0; None if no row is such.

    ``logits`` [B, V] have the maximum 0: relative to it, the weights of such a row underflow. ``mass`` [B]:
    sums of the kept weights.
    """
    if allowed is None or not bool((mass < logits.shape[1] * math.exp(-DISTANT)).any()):
        return None
    best = logits.masked_fill(~allowed, -torch.inf).amax(-1)
    return torch.where((best < -DISTANT) & best.isfinite(), best, 0.0)


def sample_tokens(
    logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Filters | None = None, checked: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: (ids int64 [B], log p float32 [B], policy log p float32 [B]).

    logits [B, V] float32 (the torch form overwrites them; the Triton form only reads, and takes half types
    too); temperature float32 [B], 0 for greedy (the lowest id among ties); uniform float64 [B]. log p is that
    of the filtered distribution, policy log p that of the full softmax at the temperature (greedy: at 1).

    The Triton form draws the same tokens as the torch form up to rounding: a uniform within about 1e-6 of a
    border between tokens, or a nucleus that ends within 1e-6 of ``top_p``, may differ. On ties at the end of
    a nucleus, Triton always keeps the lowest ids; torch may keep others, but as many.

    A mask renormalises: where every allowed token is far less probable than the best one, the distribution
    is still that of the allowed tokens.

    Raises KernelError for arguments that do not match, and for rows without a distribution: a NaN or +inf
    logit, or no allowed token of a finite logit. For the latter the Triton form synchronises; with
    ``checked`` False it does not, and marks such rows by id -1 and NaN (see `check_drawn`).
    """
    _check(logits, temperature, uniform, filters)
    if use_triton(logits) and logits.dtype in TRITON_DTYPES:
        ids, logp, policy = launch_sample(logits.contiguous(), temperature.float(), uniform, filters)
        if checked:
            _require_rows(ids >= 0)
        return ids, logp, policy
    return sample_reference(logits, temperature, uniform, filters, stable=False)


def check_drawn(ids: Sequence[int]) -> None:
    """Raise the KernelError of `sample_tokens` if unchecked ids, now on the host, contain -1."""
    if min(ids, default=0) < 0:
        rows = [row for row, token in enumerate(ids) if token < 0]
        raise KernelError(f"logits: NaN, +inf, or no allowed token of a finite logit in rows {rows[:8]}")


def _require_rows(valid: Tensor) -> None:
    """Raise KernelError naming the rows of bool [B] that are False."""
    if not bool(valid.all()):
        check_drawn([0 if v else -1 for v in valid.tolist()])


def _check(logits: Tensor, temperature: Tensor, uniform: Tensor, filters: Filters | None) -> None:
    require(logits.dim() == 2 and logits.is_floating_point(), "logits", "not a matrix of floats")
    require(logits.shape[1] > 0, "logits", "no vocabulary")
    rows = logits.shape[:1]
    require(uniform.dtype == torch.float64, "uniform", f"{uniform.dtype}, not float64")
    row_values = {"temperature": temperature, "uniform": uniform}
    if filters is not None:
        row_values |= {"top_k": filters.top_k, "top_p": filters.top_p, "min_p": filters.min_p}
        allowed = filters.allowed
        require(allowed is None or allowed.shape == logits.shape, "allowed", "not the shape of the logits")
        require(allowed is None or allowed.dtype == torch.bool, "allowed", "not bool")
        require(allowed is None or allowed.device == logits.device, "allowed", f"not on {logits.device}")
    for name, value in row_values.items():
        require(value.shape == rows, name, f"shape {tuple(value.shape)}: not one per row")
        require(value.device == logits.device, name, f"on {value.device}, logits on {logits.device}")


# --- record ---

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
"""Half types too: everything after the logits is float32."""
SETTINGS = (
    (0, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.8, 0.0),
    (0, 1.0, 0.2),
    (7, 0.6, 0.05),
    (1, 1.0, 0.0),
    (0, 1e-6, 0.0),
)
"""(top-k, top-p, min-p); row i takes the entry i modulo their number."""


def _case(rows: int, vocabulary: int, filtered: bool, masked: bool = False) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=device)

        logits = torch.randn((rows, vocabulary), generator=generator, device=device) * 3
        temperature = (rand(rows) * 1.5 + 0.3) * (torch.arange(rows, device=device) % 4 != 3)
        uniform = torch.rand(rows, generator=generator, device=device, dtype=torch.float64)
        settings = [SETTINGS[i % len(SETTINGS)] for i in range(rows)]
        k, p, m = (torch.tensor([s[i] for s in settings], device=device) for i in range(3))
        allowed = rand(rows, vocabulary) < 0.7 if masked else None
        if allowed is not None:
            allowed[:, vocabulary // 2] = True
        filters = Filters(k.long(), p.float(), m.float(), allowed) if filtered else None
        drawn = {"temperature": temperature, "uniform": uniform}
        return {"logits": logits.to(dtype), **drawn, "filters": filters}

    return Case(f"{rows}x{vocabulary}{'f' * filtered}{'m' * masked}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(rows, shape.vocabulary, filtered) for rows in (1, 64, 256) for filtered in (False, True)]


SAMPLE = Op(
    "sample",
    sample_tokens,
    sample_reference,
    [
        _case(0, 9, True),
        _case(1, 1, True),
        _case(3, 5, False),
        _case(7, 131, True),
        _case(4, 200, False),
        _case(7, 67, True, True),
    ],
    TOLERANCE,
    bytes=lambda logits, temperature, uniform, filters: logits.nbytes + 20 * len(logits),
    flops=lambda logits, temperature, uniform, filters: 4 * logits.numel(),
    launches=launches(),
    timed=_timed_cases,
)
