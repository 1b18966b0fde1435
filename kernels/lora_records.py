"""Records of `lora_linear` and `lora_add`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proactor.kernels.lora import lora_linear, lora_linear_reference
from proactor.kernels.lora_kernels import launches_add, launches_down
from proactor.kernels.lora_update import Adapter, lora_add
from proactor.kernels.op import Arguments, Case, ModelShape, Op

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def _adapter(a: Tensor, b: Sequence[Tensor], spans: Sequence[tuple[int, int]], scale: float) -> Adapter:
    return Adapter(a, b, spans, [b[0].shape[1]] * len(b), [scale] * len(b))


def _linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b0: Tensor,
    b1: Tensor,
    mask: Tensor | None,
    spans: Sequence[tuple[int, int]],
) -> Tensor:
    return lora_linear(x, lambda: weight, None, _adapter(a, (b0, b1), spans, 1.75), mask)


def _linear_reference(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b0: Tensor,
    b1: Tensor,
    mask: Tensor | None,
    spans: Sequence[tuple[int, int]],
) -> Tensor:
    return lora_linear_reference(x, weight, None, _adapter(a, (b0, b1), spans, 1.75), mask)


def _add(
    y: Tensor, xa: Tensor, b: Sequence[Tensor], mask: Tensor | None, spans: Sequence[tuple[int, int]]
) -> Tensor:
    return lora_add(y.clone(), xa, b, spans, b[0].shape[1], 1.75, mask)


def _add_reference(
    y: Tensor, xa: Tensor, b: Sequence[Tensor], mask: Tensor | None, spans: Sequence[tuple[int, int]]
) -> Tensor:
    total, rank = y.clone(), b[0].shape[1]
    gate = 1.75 if mask is None else 1.75 * mask.unsqueeze(1)
    for i, (factor, (start, stop)) in enumerate(zip(b, spans, strict=True)):
        total[:, start:stop] += gate * (xa[:, i * rank : (i + 1) * rank] @ factor.to(y.dtype).t())
    return total


Sizes = tuple[int, int, int, tuple[tuple[int, int], ...], int]
"""(rows, inputs, outputs, spans, rank)."""


def _case(sizes: Sizes, masked: bool, whole: bool) -> Case:
    m, k, n, spans, rank = sizes

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        b = [draw(stop - start, rank) for start, stop in spans]
        mask = (torch.arange(m, device=device) % 3 != 1).to(dtype) if masked else None
        if not whole:
            y, xa = draw(m, n).to(dtype), draw(m, rank * len(spans)).to(dtype)
            return {"y": y, "xa": xa, "b": b, "mask": mask, "spans": spans}
        a, weight = draw(rank * len(spans), k) / k**0.5, draw(n, k).to(dtype)
        factors = {"a": a, "b0": b[0], "b1": b[1]}
        return {"x": draw(m, k).to(dtype), "weight": weight, **factors, "mask": mask, "spans": spans}

    return Case(f"{m}x{n}x{k} rank {rank}, {len(spans)} spans{', masked' if masked else ''}", make)


def _timed_cases(shape: ModelShape, whole: bool) -> list[Case]:
    i = shape.intermediate
    return [_case((m, shape.hidden, 2 * i, ((0, i), (i, 2 * i)), 16), True, whole) for m in (1, 16, 64, 8192)]


SIZES: tuple[Sizes, ...] = (
    (1, 37, 20, ((0, 7), (9, 20)), 2),
    (3, 65, 150, ((0, 129), (129, 150)), 4),
    (17, 33, 12, ((8, 12), (0, 5)), 16),
    (67, 130, 40, ((1, 3), (3, 39)), 33),
    (0, 8, 9, ((0, 4), (5, 9)), 2),
)
SPANS: tuple[Sizes, ...] = (
    (5, 0, 300, ((0, 140), (150, 160), (170, 300)), 3),
    (2, 0, 9, ((2, 9),), 64),
    (66, 0, 30, ((0, 4), (5, 6), (9, 12), (13, 20), (20, 30)), 8),
    (3, 0, 20, ((0, 2), (3, 9), (9, 15), (16, 20)), 5),
)

LORA_ADD = Op(
    "lora_add",
    _add,
    _add_reference,
    [_case(s, masked, False) for s in SPANS + SIZES[:3] for masked in (True, False)],
    TOLERANCE,
    bytes=lambda y, xa, b, mask, spans: (
        2 * sum(e - s for s, e in spans) * y.shape[0] * y.itemsize + xa.nbytes + sum(f.nbytes for f in b)
    ),
    flops=lambda y, xa, b, mask, spans: 2 * y.shape[0] * sum(f.numel() for f in b),
    launches=launches_add(),
    timed=lambda shape: _timed_cases(shape, False),
)
LORA_LINEAR = Op(
    "lora_linear",
    _linear,
    _linear_reference,
    [_case(s, masked, True) for s in SIZES for masked in (True, False)],
    TOLERANCE,
    bytes=lambda x, weight, a, b0, b1, mask, spans: (
        x.nbytes
        + weight.nbytes
        + a.nbytes
        + b0.nbytes
        + b1.nbytes
        + x.shape[0] * weight.shape[0] * x.itemsize
    ),
    flops=lambda x, weight, a, b0, b1, mask, spans: (
        2 * x.shape[0] * (weight.numel() + a.numel() + b0.numel() + b1.numel())
    ),
    gradients=("x", "a", "b0", "b1"),
    launches=launches_down(),
    timed=lambda shape: _timed_cases(shape, True),
)
