"""Linear layer with a frozen base weight and low-rank adapters on spans of its output.

    y = x Wᵀ + b,   y[:, span_i] += s_i * m * (x A_iᵀ) B_iᵀ

x [T, K]; W [N, K] frozen; the A_i [r_i, K] stacked (one product for q, k and v, or gate and up); B_i [n_i,
r_i] float32; s_i a scale; m [T] or None switches the adapter per row. Without gradient there may be several
adapters, each with its own m. No weight gradient of the base is formed:

    g_i = s_i * m * (dy[:, span_i] B_i),   dx = dy W + Σ g_i A_i
    dA_i = g_iᵀ x,   dB_i = dy[:, span_i]ᵀ (s_i * m * x A_iᵀ)

The backward needs x, the widest of a layer's activations. Where x is cheap to compute from a tensor that is
kept for another backward (a norm's input, the stacked gate and up), `Remade` names both, and x is not kept.

On a GPU one kernel adds the updates of all spans, with scale and mask in float32, where they have one rank
and one scale; otherwise the library's products do. For few rows and no gradient another computes x Aᵀ, and
the base product may stay 4-bit (`nf4_linear`). Large products go to the library. LoRA: Hu et al., arXiv
2106.09685; a frozen 4-bit base: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.folded_adapter import FOLDED_ROWS, FoldedAdapter, add_folded, fold, folded_dtype
from proactor.kernels.linear import Linear, exact_linear, library_linear
from proactor.kernels.lora_kernels import RANKS, launch_add, launch_down
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_cpu import HostNF4, host_back, host_linear
from proactor.kernels.nf4_linear import nf4_linear
from proactor.kernels.nf4_pack import PackedNF4
from proactor.kernels.op import require, use_triton
from proactor.kernels.ordered import OrderedWeight, ordered_back, ordered_linear


@dataclass(slots=True)
class Adapter:
    """Low-rank factors of one (possibly fused) linear layer of t targets.

    ``a`` [Σ r_i, K]; for each target: ``b`` [n_i, r_i]; ``spans`` (start, stop), its output columns;
    ``ranks`` r_i; ``scales``, by which its update is multiplied.
    """

    a: Tensor
    b: Sequence[Tensor]
    spans: Sequence[tuple[int, int]]
    ranks: Sequence[int]
    scales: Sequence[float]
    uniform: bool = field(init=False)
    """Whether all have one rank and one scale, as our kernels need it."""
    kept: dict[torch.dtype, FoldedAdapter] = field(init=False, default_factory=dict, repr=False)
    """What `folded` made last."""

    def __post_init__(self) -> None:
        """Compare ranks and scales once, not at every product."""
        self.uniform = len(set(self.ranks)) == 1 == len(set(self.scales))

    def parts(self, xa: Tensor) -> Sequence[Tensor]:
        """The columns of x Aᵀ [T, Σ r_i] (or of its gradient) that belong to each target, as views."""
        parts: Sequence[Tensor] = xa.split(list(self.ranks), dim=1)
        return parts

    def gate(self, xa: Tensor, row_mask: Tensor | None) -> Tensor:
        """x Aᵀ [T, Σ r_i] times scales and mask, in place."""
        if self.uniform:
            xa *= self.scales[0]
        else:
            for part, scale in zip(self.parts(xa), self.scales, strict=True):
                part *= scale
        if row_mask is not None:
            xa *= row_mask.unsqueeze(1)
        return xa

    def folded(self, outputs: int, dtype: torch.dtype) -> FoldedAdapter:
        """Its two matrices in ``dtype`` for a linear of ``outputs``, of the factors as they are now."""
        kept = self.kept.get(dtype)
        if kept is None or not kept.serves([self.a, *self.b], outputs):
            kept = self.kept[dtype] = fold(self.a, self.b, self.spans, self.scales, outputs, dtype)
        return kept

    @property
    def folded_bytes(self) -> int:
        """Bytes that `folded` holds."""
        return sum(kept.nbytes(self.a) for kept in self.kept.values())


@dataclass(slots=True)
class Remade:
    """How the backward gets a linear's input again: ``make(kept)`` without gradient, the same bits."""

    kept: Tensor
    make: Callable[[Tensor], Tensor]


Weight = Tensor | NF4Tensor | PackedNF4 | HostNF4 | OrderedWeight
WeightSource = Callable[[], Weight]
DECODE_ROWS = 64
"""Most rows for which x Aᵀ uses our kernel: above, the library's product fills the GPU by itself."""


def _base(x: Tensor, weight: Weight, bias: Tensor | None, linear: Linear) -> Tensor:
    if isinstance(weight, HostNF4):
        return host_linear(x, weight, bias, linear)
    if isinstance(weight, OrderedWeight):
        return ordered_linear(x, weight, bias)
    return linear(x, weight, bias) if isinstance(weight, Tensor) else nf4_linear(x, weight, bias)


def _base_back(dy: Tensor, weight: Weight, linear: Linear) -> Tensor:
    if isinstance(weight, HostNF4):
        return host_back(dy, weight, linear)
    if isinstance(weight, OrderedWeight):
        return ordered_back(dy, weight, linear)
    dense = weight if isinstance(weight, Tensor) else weight.dequantize().to(dy.dtype)
    return linear(dy, dense.t(), None)


def _fused(x: Tensor, adapter: Adapter, linear: Linear) -> bool:
    """Whether the adapter runs in Triton: not for float64, several ranks or scales, ranks above 64, or
    another ``linear``.
    """
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    fits = adapter.uniform and adapter.ranks[0] <= RANKS
    return use_triton(x) and x.dtype in dtypes and fits and linear is library_linear


def _folds(x: Tensor, adapter: Adapter, linear: Linear) -> bool:
    """Whether the adapter is folded, without gradient: few rows on a CPU, and factors that count changes."""
    few = x.device.type == "cpu" and len(x) <= FOLDED_ROWS and x.dtype != torch.float64
    if not few or linear is exact_linear or _fused(x, adapter, linear):
        return False
    return not any(factor.is_inference() for factor in (adapter.a, *adapter.b))


def _delta(
    parts: Sequence[Tensor],
    y: Tensor,
    b: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    linear: Linear,
) -> None:
    for part, factor, (start, stop) in zip(parts, b, spans, strict=True):
        # addmm_ is faster, but not batch-invariant
        if linear is exact_linear:
            y[:, start:stop] += linear(part.contiguous(), factor, None)
        else:
            y[:, start:stop].addmm_(part, factor.t())


def _forward(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    adapter: Adapter,
    row_mask: Tensor | None,
    linear: Linear,
) -> tuple[Tensor, Tensor]:
    """(y, x Aᵀ for the backward: scaled and masked on the torch path, neither on the Triton path)."""
    y = _base(x, weight, bias, linear)
    return y, _update(x, y, adapter, row_mask, linear, True)


def _update(
    x: Tensor, y: Tensor, adapter: Adapter, row_mask: Tensor | None, linear: Linear, grad: bool
) -> Tensor:
    """Add an adapter's part to y, in place; returns x Aᵀ as `_forward` does."""
    if _fused(x, adapter, linear):
        if x.shape[0] <= DECODE_ROWS and not grad:
            xa = launch_down(x, adapter.a)
        else:
            xa = torch.mm(x, adapter.a.to(x.dtype).t()).unsqueeze(0)
        inside = all(stop <= y.shape[1] for _, stop in adapter.spans)
        require(inside, "adapter", f"spans {list(adapter.spans)} pass {y.shape[1]} outputs")
        launch_add(y, xa, adapter.b, adapter.spans, adapter.ranks[0], adapter.scales[0], row_mask)
        return xa[0]
    xa = adapter.gate(linear(x, adapter.a.to(x.dtype), None), row_mask)
    _delta(adapter.parts(xa), y, [b.to(x.dtype) for b in adapter.b], adapter.spans, linear)
    return xa


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        source: WeightSource,
        bias: Tensor | None,
        adapter: Adapter,
        row_mask: Tensor | None,
        linear: Linear,
        remade: Remade | None,
        a: Tensor,
        *b: Tensor,
    ) -> Tensor:
        y, xa = _forward(x, source(), bias, adapter, row_mask, linear)
        ctx.plain = _fused(x, adapter, linear)
        ctx.save_for_backward(x if remade is None else remade.kept, xa, row_mask, a, *b)
        ctx.source, ctx.adapter, ctx.linear = source, adapter, linear
        ctx.make = None if remade is None else remade.make
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, xa, row_mask, a, *b = ctx.saved_tensors
        if ctx.make is not None:
            x = ctx.make(x)
        adapter: Adapter = ctx.adapter
        if ctx.plain:  # of one scale: `_fused`
            xa = xa * adapter.scales[0]
            if row_mask is not None:
                xa *= row_mask.unsqueeze(1)
        g = torch.empty_like(xa)
        db = []
        targets = zip(b, adapter.spans, adapter.parts(g), adapter.parts(xa), strict=True)
        for factor, (start, stop), slope, low in targets:
            part = dy[:, start:stop]
            torch.mm(part, factor.to(x.dtype), out=slope)
            db.append(torch.mm(part.t(), low).to(factor.dtype))
        adapter.gate(g, row_mask)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _base_back(dy, ctx.source(), ctx.linear)
            dx.addmm_(g, a.to(x.dtype))
        da = torch.mm(g.t(), x).to(a.dtype)
        return (dx, None, None, None, None, None, None, da, *db)


class _FrozenLinear(torch.autograd.Function):
    """The base alone: no weight gradient, and the backward fetches the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: WeightSource, bias: Tensor | None, linear: Linear) -> Tensor:
        ctx.source, ctx.linear = source, linear
        return _base(x, source(), bias, linear)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _base_back(grads[0], ctx.source(), ctx.linear), None, None, None


def lora_linear(
    x: Tensor,
    source: WeightSource,
    bias: Tensor | None = None,
    adapter: Adapter | None = None,
    row_mask: Tensor | None = None,
    linear: Linear = library_linear,
    remade: Remade | None = None,
    others: Sequence[tuple[Adapter, Tensor | None]] = (),
) -> Tensor:
    """Frozen linear layer with an optional adapter: x [T, K] -> [T, N] in x's dtype, differentiable.

    ``source`` returns the base weight [N, K] on each call: a dense tensor (dequantised on the fly, so that a
    4-bit base is never kept in full precision between forward and backward), an `NF4Tensor` or `PackedNF4`,
    which `nf4_linear` multiplies, a `HostNF4` (`host_linear`) or an `OrderedWeight`. ``row_mask`` [T]: 1 for
    rows that use the adapter, else 0. ``remade``: how the backward computes x again; None keeps x.
    ``others``: more adapters, each with its ``row_mask``; then nothing is differentiable.

    The Triton form takes one rank up to 64 and one scale; others take the torch form. It raises KernelError
    naming the argument when shapes or devices do not match, or spans overlap.
    """
    if adapter is not None and _fused(x, adapter, linear):
        _check(x, adapter, row_mask)
    row_mask = _switch(row_mask, x)
    if adapter is None:
        require(not others, "adapter", "None, beside others")
        if x.requires_grad:
            return _FrozenLinear.apply(x, source, bias, linear)  # type: ignore[no-any-return, no-untyped-call]
        return _base(x, source(), bias, linear)
    if not torch.is_grad_enabled():
        return _without_gradient(x, source(), bias, [(adapter, row_mask), *others], linear)
    require(not others, "others", "several adapters in one product have no gradient")
    return _LoRALinear.apply(x, source, bias, adapter, row_mask, linear, remade, adapter.a, *adapter.b)  # type: ignore[no-any-return, no-untyped-call]


def _switch(row_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask in x's dtype: 0 and 1 are exact, and a wider one would widen the products."""
    return None if row_mask is None else row_mask.to(x.dtype)


def _without_gradient(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    adapters: Sequence[tuple[Adapter, Tensor | None]],
    linear: Linear,
) -> Tensor:
    """The base, and on top the part of each adapter."""
    y = _base(x, weight, bias, linear)
    for adapter, row_mask in adapters:
        if _fused(x, adapter, linear):
            _check(x, adapter, row_mask)
        if _folds(x, adapter, linear):
            folded = adapter.folded(y.shape[1], folded_dtype(x))
            add_folded(x, y, folded, _switch(row_mask, x), linear)
        else:
            _update(x, y, adapter, _switch(row_mask, x), linear, False)
    return y


def lora_add(
    y: Tensor,
    xa: Tensor,
    b: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    rank: int,
    scale: float,
    row_mask: Tensor | None = None,
) -> Tensor:
    """``y[:, span_i] += scale * m * xa_i B_iᵀ`` in place, every span in one launch; returns y. No gradient.

    y [T, N] contiguous, xa [T, t*r] unscaled in y's dtype, B_i [n_i, r], m [T] or None. Raises KernelError
    naming the argument when they do not match, or spans overlap.
    """
    _check_update(y, xa, b, spans, rank, row_mask)
    if use_triton(y) and rank <= RANKS and y.dtype != torch.float64:
        launch_add(y, xa.contiguous().unsqueeze(0), b, spans, rank, scale, row_mask)
        return y
    xa = xa * scale if row_mask is None else xa * scale * row_mask.unsqueeze(1)
    parts = xa.to(y.dtype).split(rank, dim=1)
    _delta(parts, y, [factor.to(y.dtype) for factor in b], spans, library_linear)
    return y


def _check(x: Tensor, adapter: Adapter, row_mask: Tensor | None) -> None:
    a, stacked = adapter.a, adapter.ranks[0] * len(adapter.b)
    require(x.ndim == 2, "x", f"shape {tuple(x.shape)}: two dimensions wanted")
    require(
        a.shape == (stacked, x.shape[1]), "adapter", f"a {tuple(a.shape)}: [{stacked}, {x.shape[1]}] wanted"
    )
    require(a.device == x.device, "adapter", f"a on {a.device}, x on {x.device}")
    _check_factors(x, adapter.b, adapter.spans, adapter.ranks[0], row_mask)


def _check_factors(
    rows: Tensor, b: Sequence[Tensor], spans: Sequence[tuple[int, int]], rank: int, row_mask: Tensor | None
) -> None:
    require(len(b) == len(spans), "spans", f"{len(spans)} for {len(b)} factors")
    for factor, (start, stop) in zip(b, spans, strict=True):
        width = stop - start
        require(factor.shape == (width, rank), "b", f"{tuple(factor.shape)}: [{width}, {rank}] wanted")
        require(factor.device == rows.device, "b", f"on {factor.device}, rows on {rows.device}")
    edges = sorted(spans)
    disjoint = all(last[1] <= following[0] for last, following in pairwise(edges))
    inside = all(start >= 0 for start, _ in spans)
    require(disjoint and inside, "spans", f"{list(spans)} overlap or begin below 0")
    if row_mask is not None:
        require(
            row_mask.shape == rows.shape[:1], "row_mask", f"{tuple(row_mask.shape)} for {rows.shape[0]} rows"
        )
        require(row_mask.device == rows.device, "row_mask", f"on {row_mask.device}, rows on {rows.device}")


def _check_update(
    y: Tensor,
    xa: Tensor,
    b: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    rank: int,
    row_mask: Tensor | None,
) -> None:
    require(y.ndim == 2 and y.is_contiguous(), "y", f"{tuple(y.shape)}: two dimensions, contiguous, wanted")
    wanted = (y.shape[0], rank * len(b))
    require(
        xa.shape == wanted and xa.dtype == y.dtype,
        "xa",
        f"{xa.dtype} {tuple(xa.shape)}: {y.dtype} {wanted} wanted",
    )
    require(xa.device == y.device, "xa", f"on {xa.device}, y on {y.device}")
    _check_factors(y, b, spans, rank, row_mask)
    require(all(stop <= y.shape[1] for _, stop in spans), "spans", f"{list(spans)} pass {y.shape[1]} columns")


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter, row_mask: Tensor | None = None
) -> Tensor:
    """`lora_linear` in plain torch, differentiable by autograd; the weight [N, K] is dense."""
    delta = torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    gate = 1.0 if row_mask is None else row_mask.unsqueeze(1)
    factors = adapter.a.split(list(adapter.ranks))
    for a, factor, (start, stop), scale in zip(
        factors, adapter.b, adapter.spans, adapter.scales, strict=True
    ):
        update = scale * gate * (x @ a.t().to(x.dtype)) @ factor.t().to(x.dtype)
        delta = delta + torch.nn.functional.pad(update, (start, weight.shape[0] - stop))
    return torch.nn.functional.linear(x, weight, bias) + delta
