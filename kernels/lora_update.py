"""Low-rank updates of spans of a linear layer's output, in place.

    y[:, span_i] += s_i * m * (x A_iᵀ) B_iᵀ

y [T, N]; x [T, K]; the A_i [r_i, K] stacked (one product for q, k and v, or gate and up); B_i [n_i, r_i]
float32; s_i a scale; m [T] or None switches the update per row.

On a GPU one kernel adds the updates of all spans, with scale and mask in float32, where they have one rank
and one scale; otherwise the library's products do. For few rows and no gradient another computes x Aᵀ, and
a CPU folds the factors (`folded_adapter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from proactor.kernels.folded_adapter import FOLDED_ROWS, FoldedAdapter, add_folded, fold, folded_dtype
from proactor.kernels.linear import Linear, exact_linear, library_linear
from proactor.kernels.lora_kernels import RANKS, launch_add, launch_down
from proactor.kernels.op import require, use_triton

DECODE_ROWS = 64
"""Most rows for which x Aᵀ uses our kernel: above, the library's product fills the GPU by itself."""


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
        return sum(kept.nbytes(self.a) for kept in list(self.kept.values()))  # asked from other threads too


def fused(x: Tensor, adapter: Adapter, linear: Linear) -> bool:
    """Whether the adapter runs in Triton: not for float64, several ranks or scales, ranks above 64, or
    another ``linear``.
    """
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    fits = adapter.uniform and adapter.ranks[0] <= RANKS
    return use_triton(x) and x.dtype in dtypes and fits and linear is library_linear


def add_update(
    x: Tensor, y: Tensor, adapter: Adapter, row_mask: Tensor | None, linear: Linear, grad: bool
) -> Tensor:
    """Add an adapter's update to y, in place. Returns x Aᵀ [T, Σ r_i] for a backward: scaled and masked on
    the torch path, neither on the Triton path. `check_adapter` comes first.

    ``grad``: whether a backward follows.
    """
    if fused(x, adapter, linear):
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


def add_without_gradient(
    x: Tensor, y: Tensor, adapter: Adapter, row_mask: Tensor | None, linear: Linear
) -> None:
    """Add an adapter's update to y, in place, where no backward follows."""
    if _folds(x, adapter, linear):
        add_folded(x, y, adapter.folded(y.shape[1], folded_dtype(x)), row_mask, linear)
    else:
        add_update(x, y, adapter, row_mask, linear, False)


def _folds(x: Tensor, adapter: Adapter, linear: Linear) -> bool:
    """Whether the adapter is folded: few rows on a CPU, and factors whose changes are counted."""
    few = x.device.type == "cpu" and len(x) <= FOLDED_ROWS and x.dtype != torch.float64
    if not few or linear is exact_linear or fused(x, adapter, linear):
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


def check_adapter(x: Tensor, adapter: Adapter, row_mask: Tensor | None, linear: Linear) -> None:
    """Raise KernelError, naming the argument, where shapes or devices do not match on the Triton path."""
    if not fused(x, adapter, linear):
        return
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
