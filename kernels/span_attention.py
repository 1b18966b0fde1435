"""Tree attention: each row of a token tree sees its ancestors and the earlier rows of its own segment.

`Spans` holds the tree.

    out_i = sum_j p_ij v_j,   p_ij = exp(scale * q_i · k_j - lse_i)   over the visible j
    ds_ij = p_ij (do_i · v_j - do_i · out_i)
    dq_i = scale * sum_j ds_ij k_j,   dk_j = scale * sum_i ds_ij q_i,   dv_j = sum_i p_ij do_i

Online softmax, and recomputation from the saved log-sum-exp: Dao et al., arXiv 2205.14135 and 2307.08691.
There are no atomics, so gradients have the same bits in every run (`span_backward`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.attention_sizes import FORWARD, KEY_GRADIENT, QUERY_GRADIENT, launches_by_size
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, require, use_triton
from proactor.kernels.past import Past, joined, past_and_own
from proactor.kernels.precision import widen
from proactor.kernels.span_backward import (
    launch_backward,
    span_key_gradient_kernel,
    span_key_sum_kernel,
    span_query_gradient_kernel,
)
from proactor.kernels.span_forward import launch_forward, span_forward_kernel
from proactor.kernels.spans import Spans

KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_HEAD_DIM = 128
"""Larger heads, and float64, take the torch form on every device."""


def span_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, past: Past | None = None
) -> Tensor:
    """Dense masked softmax in plain torch: q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D]."""
    k, v = past_and_own(past, k, v)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    hidden = torch.from_numpy(~spans.visible()).to(q.device)
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    return torch.einsum("hts,shd->thd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v).flatten(1)


def _by_segments(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
    """The torch form: one matrix product per segment and key head, over the keys that the segment sees."""
    hkv, d = k.shape[1:]
    pieces: dict[int, Tensor] = {}
    for i, (first, length) in enumerate(zip(spans.start.tolist(), spans.length.tolist(), strict=True)):
        start = first - spans.origin
        if start < 0:
            continue
        keys, values = (torch.cat([x[a:b] for a, b in spans.runs(i)]).transpose(0, 1) for x in (k, v))
        rows = q[start : start + length].reshape(length, hkv, -1, d).transpose(0, 1).reshape(hkv, -1, d)
        scores = (widen(rows @ keys.transpose(1, 2)) * scale).view(hkv, length, -1, keys.shape[1])
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        hidden = torch.nn.functional.pad(later, (keys.shape[1] - length, 0))[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
        out = weights.view(hkv, -1, keys.shape[1]) @ values
        pieces[start] = out.view(hkv, length, -1, d).transpose(0, 1).reshape(length, -1)
    if not pieces:
        return (q + k.sum() + v.sum()).flatten(1)  # empty, but connected to the graph
    return torch.cat([pieces[start] for start in sorted(pieces)])


# --- with gradient ---


class _SpanAttention(torch.autograd.Function):
    """The Triton form of `span_attention`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, past: Past | None
    ) -> Tensor:
        out, lse = launch_forward(q, *joined(past, k, v), spans, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans, ctx.scale, ctx.past = spans, scale, past
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        do = grads[0].contiguous().view(out.shape)
        keys, values = joined(ctx.past, k, v)
        dq, dk, dv = launch_backward(q, keys, values, out, lse, do, ctx.spans, ctx.scale)
        if ctx.past is not None:
            first = ctx.past.rows
            ctx.past.add(dk[:first], dv[:first])
            dk, dv = dk[first:], dv[first:]
        return dq, dk, dv, None, None, None


def span_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, past: Past | None = None
) -> Tensor:
    """Differentiable tree attention: q [T, Hq, D], k and v [T, Hkv, D] of one float dtype -> [T, Hq * D].

    Hq is a multiple of Hkv. Rows may be strided (a slice of a fused projection). ``past`` holds the keys and
    values of the first `Spans.origin` rows; q, k and v are then of the others. On a GPU, float32, float16 and
    bfloat16 with D up to `KERNEL_HEAD_DIM` run in Triton; the rest takes the torch form. Raises KernelError
    when shapes, dtypes or ``spans`` do not match.
    """
    _check(q, k, v, spans, past)
    graph = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not (use_triton(q) and q.dtype in KERNEL_TYPES and q.shape[2] <= KERNEL_HEAD_DIM):
        keys, values = past_and_own(past, k, v) if graph else joined(past, k, v)
        return _by_segments(q, keys, values, spans, scale)
    q, k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q, k, v))
    if graph:
        return _SpanAttention.apply(q, k, v, spans, scale, past)  # type: ignore[no-any-return, no-untyped-call]
    return launch_forward(q, *joined(past, k, v), spans, scale)[0].flatten(1)


def _check(q: Tensor, k: Tensor, v: Tensor, spans: Spans, past: Past | None) -> None:
    require(q.dim() == 3 and 0 not in q.shape[1:], "q", f"shape {tuple(q.shape)}, not [T, heads, head dim]")
    require(q.is_floating_point(), "q", f"{q.dtype}")
    require(
        k.dim() == 3 and k.shape[::2] == q.shape[::2],
        "k",
        f"shape {tuple(k.shape)} beside q {tuple(q.shape)}",
    )
    require(
        k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0,
        "k",
        f"{k.shape[1]} heads for {q.shape[1]} query heads",
    )
    require(v.shape == k.shape, "v", f"shape {tuple(v.shape)} beside k {tuple(k.shape)}")
    for name, x in (("k", k), ("v", v)):
        same = x.dtype == q.dtype and x.device == q.device
        require(same, name, f"{x.dtype} on {x.device}, q {q.dtype} on {q.device}")
    before = 0 if past is None else past.rows
    own = spans.rows - spans.origin
    require(own == q.shape[0], "spans", f"{own} rows with queries for q with {q.shape[0]}")
    require(spans.origin == before, "past", f"{before} rows for spans with {spans.origin} before the first")


# --- record ---

TREES = {
    "empty": Spans.causal([0]),
    "one row": Spans.causal([0, 1]),
    "causal": Spans.causal([0, 37]),
    "packed": Spans.causal([0, 1, 18, 18, 39]),
    "siblings": Spans.tree([0, 17, 22, 25], [17, 5, 3, 9], [-1, 0, 0, 0]),
    "branches of a trunk": Spans.tree(
        [0, 21, 29, 30, 35], [21, 8, 1, 5, 3], [-1, 0, 0, 0, 3], [0, 5, 21, 0, 2]
    ),
    "caterpillar": Spans.tree([0, 9, 16, 25, 30, 32], [9, 7, 9, 5, 2, 6], [-1, 0, 1, 0, 0, 1]),
    "behind a past": Spans.tree([0, 9, 16, 25, 30, 32], [9, 7, 9, 5, 2, 6], [-1, 0, 1, 0, 0, 4], origin=16),
    "interleaved": Spans.tree([0, 7, 12, 15, 33], [7, 5, 3, 18, 4], [-1, 0, 0, 2, -1]),
}
HEADS = ((1, 1, 16), (5, 1, 16), (14, 2, 8), (8, 1, 16), (4, 4, 24))


def _case(name: str, spans: Spans, heads: int, kv_heads: int, dim: int) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(rows: int, count: int) -> Tensor:
            return torch.randn((rows, count, dim), generator=generator, device=device).to(dtype)

        own, before = spans.rows - spans.origin, spans.origin
        past = Past(draw(before, kv_heads), draw(before, kv_heads)) if before else None
        q, k, v = (draw(own, count) for count in (heads, kv_heads, kv_heads))
        return {"q": q, "k": k, "v": v, "spans": spans, "scale": dim**-0.5, "past": past}

    return Case(f"{name} {heads}/{kv_heads}x{dim}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    """A causal sequence, and 16 samples of 256 tokens after one prompt of 2048."""
    group = Spans.tree([0, *range(2048, 6144, 256)], [2048] + [256] * 16, [-1] + [0] * 16)
    trees = (("causal 4096", Spans.causal([0, 4096])), ("16 samples of 256 behind 2048", group))
    return [_case(name, spans, shape.heads, shape.kv_heads, shape.head_dim) for name, spans in trees]


def _launches() -> list[Launch]:
    types = dict.fromkeys("q_ptr k_ptr v_ptr out_ptr do_ptr dq_ptr dk_ptr dv_ptr".split(), "*bf16")
    types |= dict.fromkeys(("lse_ptr", "delta_ptr", "parts_ptr"), "*fp32")
    types |= dict.fromkeys(("scale", "scale2"), "fp32")
    types |= dict.fromkeys(("tile_ptr", "span_ptr", "item_ptr", "entry_ptr", "sum_ptr"), "*i32")
    types |= dict.fromkeys(("q_stride", "k_stride", "v_stride", "heads", "kv_heads", "origin"), "i32")
    sum_types = {name: kind for name, kind in types.items() if name in span_key_sum_kernel.arg_names}
    return [
        *launches_by_size(span_forward_kernel, FORWARD, types),
        *launches_by_size(span_query_gradient_kernel, QUERY_GRADIENT, types),
        *launches_by_size(span_key_gradient_kernel, KEY_GRADIENT, types),
        Launch(span_key_sum_kernel, sum_types, {"D": 128, "N": 64, "BLOCK_D": 128}),
    ]


SPAN_ATTENTION = Op(
    "span_attention",
    span_attention,
    span_attention_reference,
    [
        *(_case(name, spans, *heads) for (name, spans), heads in zip(TREES.items(), HEADS * 2, strict=False)),
        _case("siblings", TREES["siblings"], 32, 1, 16),  # enough query blocks that key tiles are split
    ],
    {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    bytes=lambda q, k, v, spans, scale, past=None: 2 * q.nbytes + 2 * spans.rows * k[0].nbytes,
    flops=lambda q, k, v, spans, scale, past=None: 4 * spans.pairs * q.shape[1] * q.shape[2],
    gradients=("q", "k", "v"),
    launches=_launches(),
    timed=_timed_cases,
)
