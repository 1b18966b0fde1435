"""An operation against its reference: one check, for Triton's interpreter and for a GPU.

Inputs are copied between NaN, and buffers that the operation allocates start as NaN. A read outside a tensor,
or an element that is never written, then shows in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from proactor.kernels.op import Arguments, Case, Op, Outputs

GUARD = 256
"""NaN elements on either side of an input."""


@dataclass(frozen=True, slots=True)
class Error:
    """Largest error of one output or gradient, relative to the largest element of the reference."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.value <= self.limit


def check(
    op: Op, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> list[Error]:
    """Run ``op`` and its float64 reference on a fresh draw of ``case``: an `Error` per output and gradient.

    Integer outputs must be equal.
    """
    device = torch.device(device)
    arguments = case.make(torch.Generator(device=device).manual_seed(seed), device, dtype)
    inputs = {
        k: copy_between_nans(v) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    exact = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()
    }
    for name in op.gradients:
        if isinstance(inputs.get(name), Tensor):
            inputs[name].requires_grad_()
            exact[name] = exact[name].clone().requires_grad_()
    with poisoned_memory():
        ours = _as_list(op.function(**inputs))
    expected = _as_list(op.reference(**exact))
    limit = op.tolerance[dtype]
    errors = [
        _compare(f"output {i}", a, b, limit) for i, (a, b) in enumerate(zip(ours, expected, strict=True))
    ]
    return errors + _gradients(op, inputs, exact, ours, expected, limit, seed)


def _gradients(
    op: Op,
    inputs: Arguments,
    exact: Arguments,
    ours: list[Tensor],
    expected: list[Tensor],
    limit: float,
    seed: int,
) -> list[Error]:
    names = [n for n in op.gradients if isinstance(inputs.get(n), Tensor)]
    if not names:
        return []
    pairs = [(a, b) for a, b in zip(ours, expected, strict=True) if a.requires_grad]
    generator = torch.Generator(device=pairs[0][0].device).manual_seed(seed + 1)
    seeds = [torch.randn(a.shape, generator=generator, device=a.device).to(a.dtype) for a, _ in pairs]
    with poisoned_memory():
        gradients = torch.autograd.grad(
            [a for a, _ in pairs], [inputs[n] for n in names], [copy_between_nans(s) for s in seeds]
        )
    exact_gradients = torch.autograd.grad(
        [b for _, b in pairs], [exact[n] for n in names], [s.double() for s in seeds]
    )
    compared = zip(names, gradients, exact_gradients, strict=True)
    return [_compare(f"gradient of {n}", a, b, limit) for n, a, b in compared]


def _as_list(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _compare(what: str, ours: Tensor, expected: Tensor, limit: float) -> Error:
    if ours.shape != expected.shape:
        return Error(f"{what}: shape {tuple(ours.shape)} for {tuple(expected.shape)}", float("inf"), limit)
    if not ours.is_floating_point():
        return Error(what, float((ours != expected).sum()), 0.0)
    if not ours.numel():
        return Error(what, 0.0, limit)
    ours, expected = ours.detach().double(), expected.detach()
    scale = float(expected.abs().max())
    return Error(what, float((ours - expected).abs().max()) / (scale or 1.0), limit)


def copy_between_nans(tensor: Tensor) -> Tensor:
    """A copy of a contiguous tensor, with NaN before and after it in memory."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    view.copy_(tensor.detach())
    return view


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Context in which uninitialised floating tensors hold NaN (`torch.empty` and its relatives)."""

    def fill(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return run

    with (
        mock.patch.object(torch, "empty", fill(torch.empty)),
        mock.patch.object(torch, "empty_like", fill(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", fill(torch.empty_strided)),
        mock.patch.object(Tensor, "new_empty", fill(Tensor.new_empty)),
    ):
        yield
