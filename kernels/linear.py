"""Dense linear layer with a frozen weight, ``y = x Wᵀ + b`` for x [T, K], W [N, K]: MKL or oneDNN on a CPU.

Which of MKL (`F.linear`) and oneDNN (`mkldnn._linear_pointwise`) is faster depends on the processor, so
`fastest_cpu_linear` measures it once. oneDNN is also batch-invariant above a small row count: a row has the
same bits in any batch. Deterministic mode relies on it, with the row count that `exact_minimum` probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.errors import KernelError

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

ROW_STEP = 8
PROBE_ROWS = 512
PROBE_COUNTS: tuple[int, ...] = (*range(ROW_STEP, 129, ROW_STEP), 256)
"""Row counts that deterministic mode uses (`padded_rows`), compared with `PROBE_ROWS` rows. On an Intel Xeon
the float32 products of torch 2.11 sum in another order from 16, 56 or 104 rows on, those of 2.13 in one.
"""


def library_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` by torch's default library: x [T, K], weight [N, K], bias [N] or None -> [T, N]."""
    return F.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` by oneDNN on CPU tensors, same shapes as `library_linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear of deterministic mode: each row has the same bits at any batch size. Do not substitute."""
    return onednn_linear(x, weight, bias)


def onednn_available() -> bool:
    """Whether this build of torch has the oneDNN linear."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@lru_cache(maxsize=1)
def fastest_cpu_linear() -> Linear:
    """The faster of MKL and oneDNN on x [512, 512], W [512, 512], measured once per process."""
    if not onednn_available():
        return library_linear
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, 512, generator=generator), torch.randn(512, 512, generator=generator)

    def seconds(form: Linear) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            form(x, weight, None)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return onednn_linear if seconds(onednn_linear) < 0.8 * seconds(library_linear) else library_linear


def padded_rows(rows: int, minimum: int = 1) -> int:
    """The row count at which ``rows`` rows are computed in deterministic mode.

    At least ``minimum``, and one of eight counts between two powers of 2 (multiples of `ROW_STEP` up to 128),
    so at most an eighth more. oneDNN compiles a kernel for each row count, and the allocator cannot reuse
    what products of ever new sizes leave behind: memory would grow for as long as new row counts come
    (`python -m bench.row_counts`).
    """
    rows = max(rows, minimum)
    step = max(ROW_STEP, 1 << max(0, (rows - 1).bit_length() - 4))
    return -(-rows // step) * step


def exact_minimum(form: Linear, shapes: set[tuple[int, int]], dtype: torch.dtype) -> int:
    """Smallest of `PROBE_COUNTS` from which ``form`` is batch-invariant for weights of ``shapes`` (N, K).

    At this count of `padded_rows` and at those above, each row has the same bits. Raises KernelError when no
    count qualifies: deterministic mode cannot run on this machine.
    """
    generator = torch.Generator().manual_seed(1)
    minimum = 0
    for n, k in sorted(shapes):
        x = torch.randn(PROBE_ROWS, k, generator=generator).to(dtype)
        weight = torch.randn(n, k, generator=generator).to(dtype)
        full = form(x, weight, None)
        unsafe = [
            m for m in PROBE_COUNTS if not torch.equal(form(x[:m].contiguous(), weight, None), full[:m])
        ]
        minimum = max(minimum, max(unsafe, default=0) + 1)
    if minimum > PROBE_COUNTS[-1]:
        raise KernelError(
            f"deterministic mode: no row count up to {PROBE_COUNTS[-1]} gives bit-identical rows here; use "
            "fp32 on a CPU"
        )
    return next(m for m in PROBE_COUNTS if m >= minimum)
