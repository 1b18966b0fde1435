"""Precision of sums and statistics: float32 for half types, otherwise the tensor's own dtype.

Checks in float64 thus stay in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for bfloat16 and float16, else ``dtype``."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def widen(x: Tensor) -> Tensor:
    """``x`` in `wide_dtype`; no copy if it has that dtype."""
    return x.to(wide_dtype(x.dtype))
