"""An adapter as two matrices, for few rows on a CPU: two small products a linear, whatever its targets.

    y += m * (x Aᵀ) Fᵀ,   F [N, Σ r_i]:  F[span_i, columns of target i] = s_i * B_i,  else 0

A product of a few rows takes as long as its call: a factor that is converted, scaled and multiplied on its
own makes five of them, and a linear has up to three. The zeros cost less until the rows are many. A and F are
held in the rows' dtype, and made again when a factor has changed. [OWN]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.kernels.linear import Linear

NARROW_ROWS = 4
"""Most rows of half types that are multiplied in float32: their products take 20 us to begin with."""
FOLDED_ROWS = 128
"""Most rows: above, in float32, the zeros take what the calls took (AMD EPYC with AVX512-BF16)."""


@dataclass(frozen=True, slots=True)
class FoldedAdapter:
    """``a`` [R, K] and ``b`` [N, R], the matrices A and F, of the factors as they were at ``versions``."""

    a: Tensor
    b: Tensor
    versions: tuple[int, ...]

    def serves(self, factors: Sequence[Tensor], outputs: int) -> bool:
        """Whether it stands for these factors as they are now, for a linear of ``outputs``."""
        return self.b.shape[0] == outputs and self.versions == versions_of(factors)

    def nbytes(self, a: Tensor) -> int:
        """Bytes held beside the adapter's own ``a``, which is A where no other dtype is wanted."""
        return self.b.nbytes + (0 if self.a.data_ptr() == a.data_ptr() else self.a.nbytes)


def versions_of(factors: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each was changed in place, as autograd counts."""
    return tuple(factor._version for factor in factors)


def folded_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which rows x [T, K] meet a folded adapter. float16 would make NaN of a zero of F and of
    what overflows in another target.
    """
    return torch.float32 if len(x) <= NARROW_ROWS or x.dtype == torch.float16 else x.dtype


@torch.no_grad()
def fold(
    a: Tensor,
    b: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    scales: Sequence[float],
    outputs: int,
    dtype: torch.dtype,
) -> FoldedAdapter:
    """Fold ``a`` [Σ r_i, K] and the ``b`` [n_i, r_i], float32, in ``dtype``."""
    folded = torch.zeros(outputs, len(a), dtype=dtype)
    column = 0
    for factor, (start, stop), scale in zip(b, spans, scales, strict=True):
        folded[start:stop, column : column + factor.shape[1]] = factor * scale
        column += factor.shape[1]
    return FoldedAdapter(a.detach().to(dtype), folded, versions_of([a, *b]))


def add_folded(x: Tensor, y: Tensor, folded: FoldedAdapter, row_mask: Tensor | None, linear: Linear) -> None:
    """Add the adapter's part to y [T, N] in place: x [T, K] and ``row_mask`` [T] (or None) in y's dtype."""
    dtype = folded.a.dtype
    xa = linear(x.to(dtype), folded.a, None)
    if row_mask is not None:
        xa *= row_mask.unsqueeze(1)
    if dtype == y.dtype:
        y.addmm_(xa, folded.b.t())
    else:
        y += linear(xa, folded.b, None)  # added in float32, then rounded
