"""Dense linear layer with a frozen weight, ``y = x Wᵀ + b`` for x [T, K], W [N, K]: MKL or oneDNN on a CPU.

Which of MKL (`F.linear`) and oneDNN (`mkldnn._linear_pointwise`) is faster depends on the processor, the
weight's shape and the number of rows, so `FastestLinear` measures each once. oneDNN is also batch-invariant
above a small row count: a row has the same bits in any batch. Deterministic mode relies on it, with the row
count that `exact_minimum` probes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.errors import KernelError
from proactor.kernels.shortest import shortest

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

ROW_STEP = 8
PROBE_ROWS = 512
PROBE_OUTPUTS = 4096
SMALL = 1 << 16
"""Weights of a product too small to choose for: times of microseconds would decide by chance."""
PROBES = 4
"""Times that each form is tried; the shortest counts."""
WIDENED = 1 << 20
"""Weights that `widened_linear` converts at a time: 4 MB."""
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


def onednn_available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch has the oneDNN linear, and this processor takes it in ``dtype``."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def widened_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` of half types by float32 products, rounded once; same shapes as `library_linear`.

    Few outputs at a time, so that the widened weight stays in the cache. For CPUs without bfloat16 products,
    where torch's own take several times as long.
    """
    form = onednn_linear if onednn_available() else library_linear
    wide, out = x.float(), x.new_empty(x.shape[0], weight.shape[0])
    for start in range(0, len(weight), step := max(1, WIDENED // weight.shape[1])):
        part = slice(start, start + step)
        out[:, part] = form(wide, weight[part].float(), None if bias is None else bias[part].float())
    return out


def cpu_forms(dtype: torch.dtype) -> list[Linear]:
    """Forms of the linear for a CPU, the library's first."""
    if dtype in (torch.bfloat16, torch.float16):
        return [library_linear, widened_linear]
    return [library_linear, onednn_linear] if onednn_available() else [library_linear]


class FastestLinear:
    """A linear that takes, for each weight shape and row count, the form that was fastest at first.

    A key is measured once, on a part of the operands that first have it, at most `PROBE_ROWS` rows and
    `PROBE_OUTPUTS` outputs. Row counts with one number of binary digits share a key.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[Hashable, ...], Linear] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + b``: x [T, K], weight [N, K], bias [N] or None -> [T, N]."""
        key = (x.dtype, min(x.shape[0], PROBE_ROWS).bit_length(), weight.shape, weight.stride())
        form = self._chosen.get(key)
        if form is None:
            form = self._chosen[key] = _fastest(x, weight)
        return form(x, weight, bias)


@torch.no_grad()
def _fastest(x: Tensor, weight: Tensor) -> Linear:
    """The fastest form; the library's unless another takes less than 0.85 of its time."""
    forms = cpu_forms(x.dtype)
    x, weight = x[:PROBE_ROWS], weight[:PROBE_OUTPUTS]
    if len(forms) == 1 or not x.numel() or weight.numel() < SMALL:
        return forms[0]
    times = shortest([partial(form, x, weight, None) for form in forms], PROBES)
    seconds = dict(zip(forms, times, strict=True))
    best = min(forms, key=lambda form: seconds[form])
    return best if seconds[best] < 0.85 * seconds[library_linear] else library_linear


@lru_cache(maxsize=1)
def fastest_cpu_linear() -> Linear:
    """The process's `FastestLinear`: one, so that equal products are computed alike."""
    return FastestLinear()


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
