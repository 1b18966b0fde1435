"""Attention of libraries: SDPA, `varlen_attn` and FlexAttention on the arguments of our operations."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.form import Form, Peer
from proactor.kernels.op import Arguments


def _heads_first(a: Arguments) -> list[Tensor]:
    """Queries, keys and values as views [1, heads, T, D]."""
    return [a[name].transpose(0, 1).unsqueeze(0) for name in ("q", "k", "v")]


def _rows_first(out: Tensor) -> Tensor:
    return out[0].transpose(0, 1).flatten(1)


def _is_causal(spans: Any) -> bool:
    return len(spans.start) == 1


def _without_past(build: Callable[[Arguments], Form | None]) -> Callable[[Arguments], Form | None]:
    """``build``, which has no form for keys without queries."""
    return lambda a: build(a) if a.get("past") is None else None


@_without_past
def _sdpa(a: Arguments) -> Form:
    """SDPA: causal where the tree is one run, with a dense mask elsewhere."""
    q, k, v = _heads_first(a)
    if _is_causal(a["spans"]):
        rest: dict[str, Any] = {"is_causal": True}
    else:
        rest = {"attn_mask": torch.from_numpy(a["spans"].visible()).to(q.device)}
    call = lambda: F.scaled_dot_product_attention(q, k, v, scale=a["scale"], enable_gqa=True, **rest)  # noqa: E731
    return Form(call, [a[n] for n in ("q", "k", "v")], _rows_first)


@_without_past
def _varlen(a: Arguments) -> Form | None:
    """varlen_attn, only for separate causal runs: it does not support trees."""
    from torch.nn.attention.varlen import varlen_attn

    spans = a["spans"]
    if len(spans.spans) or (spans.base != spans.start).any():
        return None
    edges = torch.tensor([*spans.start.tolist(), spans.rows], dtype=torch.int32, device=a["q"].device)
    longest, group = int(spans.length.max()), a["q"].shape[1] // a["k"].shape[1]
    call = _varlen_call(varlen_attn, a["q"], a["k"], a["v"], edges, longest, group, a["scale"])
    return Form(call, [a[n] for n in ("q", "k", "v")], lambda out: out.flatten(1))


def _varlen_call(
    varlen: Any, q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, group: int, scale: float
) -> Callable[[], Any]:
    known = inspect.signature(varlen).parameters  # changes between versions
    rest: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    rest |= {"scale": scale} if "scale" in known else {}
    rest |= {"enable_gqa": True} if "enable_gqa" in known else {}
    few = group == 1 or "enable_gqa" in known

    def call() -> Any:
        keys, values = (x if few else x.repeat_interleave(group, 1) for x in (k, v))
        return varlen(q, keys, values, edges, edges, longest, longest, **rest)

    return call


def _paths(spans: Any) -> list[list[int]]:
    """The rows of every leaf with those it sees, in order: what a sample is without sharing."""
    seen = {row for a, b in spans.spans.tolist() for row in range(a, b)}
    starts = spans.start.tolist()
    leaves = [i for i, start in enumerate(starts) if start not in seen]
    return [[row for a, b in spans.runs(i) for row in range(a, b)] for i in leaves]


@_without_past
def _varlen_copies(a: Arguments) -> Form | None:
    """varlen_attn on a tree: each leaf with a copy of its whole context, as a packed batch has it."""
    from torch.nn.attention.varlen import varlen_attn

    spans, paths = a["spans"], _paths(a["spans"])
    if not paths:
        return None
    device = a["q"].device
    order = [row for path in paths for row in path]
    first: dict[int, int] = {}
    for place, row in enumerate(order):
        first.setdefault(row, place)
    if len(first) < spans.rows:
        return None
    rows = torch.tensor(order, device=device)
    back = torch.tensor([first[row] for row in range(spans.rows)], device=device)
    edges = torch.tensor([0, *itertools.accumulate(map(len, paths))], dtype=torch.int32, device=device)
    longest, group = max(map(len, paths)), a["q"].shape[1] // a["k"].shape[1]
    q, k, v = (a[name].detach()[rows].requires_grad_(a[name].requires_grad) for name in ("q", "k", "v"))
    call = _varlen_call(varlen_attn, q, k, v, edges, longest, group, a["scale"])
    return Form(call, [q, k, v], lambda out: out.flatten(1)[back])


@cache
def _compiled_once(function: Any) -> Any:
    return torch.compile(function)


@_without_past
def _flex(a: Arguments) -> Form:
    """FlexAttention with a prepared block mask of the tree; on a CPU not compiled, which takes minutes."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attention = flex_attention if a["q"].device.type == "cpu" else _compiled_once(flex_attention)
    q, k, v = _heads_first(a)
    visible = torch.from_numpy(a["spans"].visible()).to(q.device)
    rows = len(visible)
    mask = create_block_mask(lambda b, h, i, j: visible[i, j], None, None, rows, rows, device=str(q.device))
    call = lambda: attention(q, k, v, block_mask=mask, scale=a["scale"], enable_gqa=True)  # noqa: E731
    return Form(call, [a[n] for n in ("q", "k", "v")], _rows_first)


def _sdpa_on_gathered(a: Arguments) -> Form | None:
    """SDPA over keys gathered from the pages beforehand, where all rows see the same number of keys."""
    lengths, unit = a["lengths"], a["unit"]
    count = int(lengths[0]) if len(lengths) else 0
    if not count or bool((lengths != count).any()):
        return None
    place = torch.arange(count, device=lengths.device)
    slots = a["table"][:, place // unit].long() * unit + place % unit  # [B, count]
    k, v = (a[n][:, slots].transpose(0, 1).contiguous() for n in ("keys", "values"))  # [B, Hkv, count, D]
    q = a["q"].unsqueeze(2)
    call = lambda: F.scaled_dot_product_attention(q, k, v, scale=a["scale"], enable_gqa=True)  # noqa: E731
    return Form(call, view=lambda out: out[:, :, 0].flatten(1))


SDPA = Peer("SDPA", _sdpa)
VARLEN = Peer("varlen_attn", _varlen, "torch.nn.attention.varlen")
VARLEN_COPIES = Peer("varlen_attn on copies", _varlen_copies, "torch.nn.attention.varlen")
FLEX = Peer("FlexAttention", _flex, "torch.nn.attention.flex_attention")
"""Not among the peers of every row: it compiles for each length."""
SDPA_ON_GATHERED = Peer("SDPA on gathered keys", _sdpa_on_gathered)
