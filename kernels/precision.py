"""Precision of sums and statistics: float32 for half types, otherwise the tensor's own dtype.

Checks in float64 thus stay in float64. `exp_` is the exponential of a softmax on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAINT = -64.0
"""Exponent of the least weight beside a row's largest, 1: 1.6e-28, nothing in a sum of either precision."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for bfloat16 and float16, else ``dtype``."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def widen(x: Tensor) -> Tensor:
    """``x`` in `wide_dtype`; no copy if it has that dtype."""
    return x.to(wide_dtype(x.dtype))


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of ``hidden``'s shape to add to scores: 0, and next to -inf where it is True.

    Not -inf: a row that sees no key of one part has a finite sum there, and weight 0 beside the other.
    """
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, torch.finfo(dtype).min / 2
    )


def exp_(scores: Tensor, top: Tensor) -> Tensor:
    """exp(scores - top) in place, ``top`` the largest score of a row or its log-sum-exp.

    Hidden keys get `FAINT`'s weight instead of 0: a CPU's exponential takes ten times as long where it
    underflows. Their values must be finite.
    """
    return scores.sub_(top).clamp_(min=FAINT).exp_()
