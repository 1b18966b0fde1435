"""NF4 weights stacked by rows, in any form that holds several as one: what they must have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch

from proactor.kernels.errors import KernelError
from proactor.kernels.nf4 import NF4_CODE, NF4Tensor
from proactor.kernels.op import require

Weights = tuple[NF4Tensor, ...]


def check_stack(weights: Weights) -> None:
    """Raise KernelError ("weights: ...") where there are none, where rows are not whole blocks, where levels
    are not NF4's, or where they differ in columns, block size, device or dtype.
    """
    require(bool(weights), "weights", "none given")
    first = weights[0]
    for w in weights:
        whole = w.shape[1] % w.blocksize == 0
        require(whole, "weights", f"{w.shape[1]} columns are not whole blocks of {w.blocksize}")
        require(w.shape[1] == first.shape[1], "weights", f"{w.shape[1]} columns beside {first.shape[1]}")
        same = w.blocksize == first.blocksize
        require(same, "weights", f"blocks of {w.blocksize} beside {first.blocksize}")
        require(w.device == first.device, "weights", f"on {w.device} and {first.device}")
        require(w.dtype == first.dtype, "weights", f"{w.dtype} beside {first.dtype}")
        require(torch.equal(w.code.cpu(), NF4_CODE), "weights", "code is not the sixteen NF4 levels")


def passes(check: Callable[[Weights], None], weights: Weights) -> bool:
    """Whether ``check`` finds nothing to refuse in the weights."""
    try:
        check(weights)
    except KernelError:
        return False
    return True
