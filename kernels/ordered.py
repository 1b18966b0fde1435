"""A dense weight of a CPU in the order that oneDNN's products want, instead of row by row.

    y = x Wᵀ + b,   dx = dy W        x [T, K], W [N, K]

Given a weight row by row, a product puts it into that order at each call, which few rows do not pay for. The
order is the only copy that is held; the backward puts it back, which many rows pay for. The bits of a product
are those of oneDNN with the plain weight; of a lone row in float32 they are not (seen on AMD). [OWN]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from proactor.kernels.linear import (
    PROBE_OUTPUTS,
    PROBES,
    SMALL,
    Linear,
    library_linear,
    onednn_available,
)
from proactor.kernels.shortest import shortest

ROWS = 8
"""Rows that oneDNN is told to expect. On an AMD EPYC the order is as good for one row as for a thousand."""


PROBED = (1, 8, 64, 512)
"""Rows of the products that `worth_ordering` times: a few sequences that decode, many, a tree."""


@dataclass(frozen=True, slots=True)
class OrderedWeight:
    """A weight [N, K] in oneDNN's order. ``opaque``: torch's tensor of it, which has no strides."""

    opaque: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    device = torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def dense(self) -> Tensor:
        """The weight row by row, a new tensor with the bits that `order` was given."""
        return self.opaque.to_dense(self.dtype)


def can_order(weight: Tensor) -> bool:
    """Whether `order` takes this weight: float32 or bfloat16 on a CPU whose oneDNN multiplies it."""
    return weight.device.type == "cpu" and onednn_available(weight.dtype)


@lru_cache(maxsize=256)
def worth_ordering(shape: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether products with an ordered weight [N, K] take less time here than torch's default ones.

    In bfloat16 always. In float32 that is measured once a shape, over `PROBED` rows: oneDNN wins on AMD, MKL
    on some Intel processors. Weights too small to tell (`linear.SMALL`) are not.
    """
    if dtype == torch.bfloat16:
        return True
    if shape[0] * shape[1] < SMALL:
        return False
    weight = torch.ones(min(shape[0], PROBE_OUTPUTS), shape[1], dtype=dtype)
    ordered, inputs = order(weight), [torch.ones(rows, shape[1], dtype=dtype) for rows in PROBED]
    ours = [partial(ordered_linear, x, ordered) for x in inputs]
    library = [partial(library_linear, x, weight) for x in inputs]
    seconds = shortest([*ours, *library], PROBES)
    halves = zip(seconds[: len(ours)], seconds[len(ours) :], strict=True)
    return sum(a / b for a, b in halves) < len(PROBED)


def order(weight: Tensor) -> OrderedWeight:
    """The weight [N, K] in the order of products."""
    opaque = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return OrderedWeight(opaque, (weight.shape[0], weight.shape[1]), weight.dtype)


def ordered_linear(x: Tensor, weight: OrderedWeight, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` without gradient: x [T, K] in the weight's dtype, bias [N] or None -> [T, N]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight.opaque, bias, "none", [], "")  # type: ignore[no-any-return]


def ordered_back(dy: Tensor, weight: OrderedWeight, linear: Linear) -> Tensor:
    """``dy W``, the gradient of x [T, K]; dy [T, N]. ``linear`` multiplies the weight put back."""
    return linear(dy, weight.dense().t(), None)
