"""Log-probabilities of target tokens from hidden rows, in chunks, without the logits of every row at once.

For pairs (row r, target y) with temperature τ, and z = W h_r:

    log p = z_y/τ - logsumexp(z/τ),   entropy = logsumexp(z/τ) - Σ p z/τ
    dz_r = Σ_pairs (g (onehot(y) - p) - e p (log p + entropy)) / τ,   e: the gradient of the entropy

Several pairs may name one row, since a branch point of a token tree predicts the first token of every child;
its logits are computed once. Logits are kept for the backward while they fit in `KEEP_BYTES` (two head
products per chunk), and recomputed otherwise (three). `logprob_loss` needs two at any size, for a loss that
is a sum over pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.head_rows import Rows, launch_slopes_, launch_values, launches, pair_offsets
from proactor.kernels.linear import Linear, library_linear
from proactor.kernels.op import Arguments, Case, ModelShape, Op, require, use_triton
from proactor.kernels.precision import wide_dtype, widen

CHUNK_ROWS = 512
"""Rows per chunk of the torch form."""
CHUNK_BYTES = 256 << 20
"""Bytes of logits per chunk of the Triton form."""
KEEP_BYTES = 1 << 30
"""Most bytes of logits that the forward keeps for the backward."""
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def logprob_reference(
    hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """(log p [P], entropy [P]) in plain torch.

    hidden [R, H], weight [V, H], row and target int64 [P], temperature float32 [P].
    """
    logits = widen(hidden[row] @ weight.t()) / temperature.unsqueeze(1)
    logp = logits.log_softmax(-1)
    return logp.gather(1, target.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(-1)


# --- torch ---


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        row: Tensor,
        target: Tensor,
        scale: Tensor,
        linear: Linear,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        logp = hidden.new_empty(row.shape[0], dtype=wide_dtype(hidden.dtype))
        entropy = torch.empty_like(logp)
        total = logp.new_empty(hidden.shape[0])
        kept: list[Tensor] = []
        bounds = chunk_pairs(row, hidden.shape[0])
        for start, stop, first, last in bounds:
            shifted = scaled_logits(hidden[start:stop], weight, scale[start:stop], linear)
            r = row[first:last] - start
            weights, total[start:stop], logp[first:last], entropy[first:last] = values_(
                shifted, r, target[first:last]
            )
            if keep:
                kept.append(weights.to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, row, target, scale, total)
        ctx.kept, ctx.bounds, ctx.linear = kept, bounds, linear
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, row, target, scale, total = ctx.saved_tensors
        dlogp, dentropy = _given(grads)
        dh = torch.empty_like(hidden)
        for i, (start, stop, first, last) in enumerate(ctx.bounds):
            part = scale[start:stop]
            if ctx.kept:
                weights = widen(ctx.kept[i])
            else:
                weights, _ = exponentials_(scaled_logits(hidden[start:stop], weight, part, ctx.linear))
            r = row[first:last] - start
            spread = None if dentropy is None else dentropy[first:last]
            dz = slopes_(weights, total[start:stop], part, r, target[first:last], dlogp[first:last], spread)
            dh[start:stop] = ctx.linear(dz.to(hidden.dtype), weight.t(), None)
        ctx.kept = []
        return dh, None, None, None, None, None, None


def _given(grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor | None]:
    """Gradients of (log p [P], entropy [P]); that of log p is 0 where only the entropy has one."""
    dlogp, dentropy = grads
    if dlogp is None:
        assert dentropy is not None
        dlogp = torch.zeros_like(dentropy)
    return dlogp.contiguous(), None if dentropy is None else dentropy.contiguous()


def scaled_logits(hidden: Tensor, weight: Tensor, scale: Tensor, linear: Linear) -> Tensor:
    """Logits [R, V] times ``scale`` [R], the inverse temperature, in float32 (float64 stays float64)."""
    logits = widen(linear(hidden, weight, None))
    return logits if bool((scale == 1).all()) else logits.mul_(scale.unsqueeze(1))


def exponentials_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(exp(logits - max) [R, V], its sums [R]); shifts ``logits`` [R, V] float32 by their maximum, in place.

    log p of token y is then ``logits[y] - log(sum)``. The sampler and the trainer both compute it so: equal
    logits give equal bits.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    weights = logits.exp()
    return weights, weights.sum(-1)


def values_(logits: Tensor, r: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(exponentials [R, V], their sums [R], log p [P], entropy [P]) of a chunk; shifts ``logits`` in place.

    ``r`` int64 [P]: the row of each pair, from the chunk's first row on.
    """
    weights, total = exponentials_(logits)
    log_total = total.log()
    mean = torch.bmm(weights.unsqueeze(1), logits.unsqueeze(2)).view(-1) / total
    return weights, total, logits[r, target] - log_total[r], (log_total - mean)[r]


def slopes_(
    weights: Tensor,
    total: Tensor,
    scale: Tensor,
    r: Tensor,
    target: Tensor,
    dlogp: Tensor,
    dentropy: Tensor | None = None,
) -> Tensor:
    """Gradient of a chunk's logits [R, V] from that of log p [P], and that of the entropy [P] where given;
    overwrites the exponentials ``weights``.
    """
    g, rows = dlogp * scale[r], dlogp.new_zeros(len(total))
    pull, spread = rows.index_add(0, r, g), None
    if dentropy is not None:
        p = weights / total.unsqueeze(1)
        spread = torch.xlogy(p, p)  # p log p; minus its sum over a row is the entropy
        spread.sub_(p.mul_(spread.sum(-1, keepdim=True)))
        spread.mul_(rows.index_add(0, r, dentropy * scale[r]).unsqueeze(1))
    dz = weights.mul_((-pull / total).unsqueeze(1)).index_put_((r, target), g, accumulate=True)
    return dz if spread is None else dz.sub_(spread)


def chunk_pairs(row: Tensor, rows: int, size: int | None = None) -> list[tuple[int, int, int, int]]:
    """(first row, end row, first pair, end pair) per chunk of ``size`` rows (None: `CHUNK_ROWS`).

    ``row`` [P] must be ascending.
    """
    edges = [*range(0, rows, size or CHUNK_ROWS), rows]
    cuts = torch.searchsorted(row, torch.tensor(edges, device=row.device)).tolist()
    return [(a, b, c, d) for a, b, c, d in zip(edges[:-1], edges[1:], cuts[:-1], cuts[1:], strict=True)]


# --- Triton ---


class _TritonLogProb(torch.autograd.Function):
    """Logits keep the head's dtype and are overwritten by their gradient: the only [rows, V] buffer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, rows: Rows, linear: Linear, keep: bool
    ) -> tuple[Tensor, Tensor]:
        logp = torch.empty(len(rows.target), dtype=torch.float32, device=hidden.device)
        entropy, lse = torch.empty_like(logp), torch.empty_like(rows.scale)
        kept = []
        for start, stop in row_chunks(hidden.shape[0], weight):
            logits = linear(hidden[start:stop], weight, None).contiguous()
            launch_values(logits, start, rows, logp, entropy, lse)
            if keep:
                kept.append(logits)
            del logits  # otherwise two chunks would be live at once
        ctx.save_for_backward(hidden, weight, lse, entropy)
        ctx.rows, ctx.kept, ctx.linear = rows, kept, linear
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, lse, entropy = ctx.saved_tensors
        (dlogp, dentropy), dh = _given(grads), torch.empty_like(hidden)
        entropies = None if dentropy is None else (dentropy, entropy)
        kept, ctx.kept = ctx.kept[::-1], []  # overwritten below: a second backward recomputes them
        for start, stop in row_chunks(hidden.shape[0], weight):
            logits = kept.pop() if kept else ctx.linear(hidden[start:stop], weight, None).contiguous()
            launch_slopes_(logits, start, ctx.rows, lse, dlogp, entropies)
            torch.mm(logits.to(weight.dtype), weight, out=dh[start:stop])
            del logits
        return dh, None, None, None, None


def row_chunks(rows: int, weight: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of chunks of rows whose logits, in the dtype of ``weight`` [V, H], fit `CHUNK_BYTES`."""
    fitting = CHUNK_BYTES // (weight.shape[0] * weight.element_size())
    size = max(1, fitting // 64 * 64 or fitting)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


# --- public ---


def log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    row: Tensor,
    target: Tensor,
    temperature: Tensor,
    linear: Linear = library_linear,
) -> tuple[Tensor, Tensor]:
    """(log p [P], entropy [P]) of pairs in nats, float32; both are differentiable in ``hidden``.

    hidden [R, H]; weight [V, H], frozen; row, target int64 [P], with ``row`` ascending and every row named;
    temperature float32 [R], above 0. Float64 takes the torch form on every device. Raises KernelError for
    rows that do not ascend, ids outside the head, temperatures of 0 or less, and shapes that do not match;
    that check synchronises with the device once.
    """
    check_pairs(hidden, weight, row, target, temperature)
    keep = torch.is_grad_enabled() and hidden.shape[0] * weight.shape[0] * hidden.element_size() <= KEEP_BYTES
    if use_triton(hidden) and hidden.dtype in TRITON_DTYPES:
        rows = triton_rows(row, target, temperature)
        keep &= hidden.requires_grad
        return _TritonLogProb.apply(hidden.contiguous(), weight, rows, linear, keep)  # type: ignore[no-any-return, no-untyped-call]
    return _LogProb.apply(hidden, weight, row, target, temperature.reciprocal(), linear, keep)  # type: ignore[no-any-return, no-untyped-call]


def triton_rows(row: Tensor, target: Tensor, temperature: Tensor) -> Rows:
    """The pairs in the layout of the kernels."""
    scale = temperature.float().reciprocal().contiguous()
    return Rows(scale, pair_offsets(row.contiguous(), len(scale)), target.contiguous())


def check_pairs(hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor) -> None:
    """Raise KernelError for what `log_probabilities` cannot take."""
    require(hidden.dim() == 2 and hidden.is_floating_point(), "hidden", "not a matrix of floats")
    width = hidden.shape[1]
    require(weight.shape[1:] == (width,), "weight", f"shape {tuple(weight.shape)} for rows of {width}")
    require(weight.dtype == hidden.dtype, "weight", f"{weight.dtype} beside hidden {hidden.dtype}")
    for name, value in (("row", row), ("target", target)):
        require(value.dtype == torch.int64 and value.shape == (len(target),), name, "not int64, one per pair")
    shape = tuple(temperature.shape)
    require(shape == hidden.shape[:1], "temperature", f"shape {shape}: not one per row")
    if not len(row):
        return
    faults = [
        row[1:] < row[:-1],
        (row < 0) | (row >= len(hidden)),
        (target < 0) | (target >= len(weight)),
        ~(temperature > 0),
    ]
    # one transfer for all four
    unsorted, bad_row, bad_target, bad_temperature = torch.stack([f.any() for f in faults]).tolist()
    require(not unsorted, "row", "pairs must be sorted by row")
    require(not bad_row, "row", f"outside 0 … {len(hidden) - 1}")
    require(not bad_target, "target", f"outside 0 … {len(weight) - 1}")
    require(not bad_temperature, "temperature", "must be above 0")


# --- record ---

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2.5e-2}
"""For half types this is the rounding of the logits themselves, as it appears in log p."""


def _reference(
    hidden: Tensor, weight: Tensor, row: Tensor, target: Tensor, temperature: Tensor
) -> tuple[Tensor, ...]:
    return logprob_reference(hidden, weight, row, target, temperature[row])


def head_case(rows: int, hidden: int, vocabulary: int, extra: int) -> Case:
    """One pair per row, and ``extra`` more pairs on random rows."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def ids(high: int, count: int) -> Tensor:
            return torch.randint(0, max(1, high), (count,), generator=generator, device=device)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        row = torch.cat([torch.arange(rows, device=device), ids(rows, extra if rows else 0)]).sort().values
        temperature = torch.rand(rows, generator=generator, device=device) + 0.5
        weight = (draw(vocabulary, hidden) * (4 / hidden) ** 0.5).to(dtype)
        arguments = {"hidden": draw(rows, hidden).to(dtype), "weight": weight, "row": row}
        return arguments | {"target": ids(vocabulary, len(row)), "temperature": temperature}

    return Case(f"{rows}x{hidden}x{vocabulary}+{extra}", make)


def timed_heads(shape: ModelShape) -> list[Case]:
    """The rows of one decision, and of a full batch."""
    return [head_case(rows, shape.hidden, shape.vocabulary, rows // 8) for rows in (512, 16384)]


SHAPES = ((0, 8, 11, 0), (1, 3, 5, 0), (1, 4, 300, 9), (7, 5, 131, 12), (5, 16, 257, 0))

LOGPROB = Op(
    "logprob",
    log_probabilities,
    _reference,
    [head_case(*s) for s in SHAPES],
    TOLERANCE,
    bytes=lambda hidden, weight, row, target, temperature: hidden.nbytes + weight.nbytes + 24 * len(row),
    flops=lambda hidden, weight, row, target, temperature: 2 * hidden.shape[0] * weight.numel(),
    gradients=("hidden",),
    launches=launches(),
    timed=timed_heads,
)
