"""Whether an operation computes what its reference does: the same check under the interpreter and on a card.

Inputs lie inside buffers of NaN and every buffer that the operation allocates begins as NaN, so that a read
outside a tensor or an element never written shows in the result.
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
"""Elements of NaN on either side of an input."""


@dataclass(frozen=True, slots=True)
class Error:
    """Largest difference of one output or gradient, relative to the largest element of the reference's."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.value <= self.limit


def check(
    op: Op, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> list[Error]:
    """Run ``op`` on a fresh draw of ``case``; one `Error` for each floating output and each gradient,
    exactness for integer outputs.
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
        ours = _listed(op.function(**inputs))
    wanted = _listed(op.reference(**exact))
    limit = op.tolerance[dtype]
    errors = [_compare(f"output {i}", a, b, limit) for i, (a, b) in enumerate(zip(ours, wanted, strict=True))]
    return errors + _gradients(op, inputs, exact, ours, wanted, limit, seed)


def _gradients(
    op: Op,
    inputs: Arguments,
    exact: Arguments,
    ours: list[Tensor],
    wanted: list[Tensor],
    limit: float,
    seed: int,
) -> list[Error]:
    names = [n for n in op.gradients if isinstance(inputs.get(n), Tensor)]
    if not names:
        return []
    pairs = [(a, b) for a, b in zip(ours, wanted, strict=True) if a.requires_grad]
    generator = torch.Generator(device=pairs[0][0].device).manual_seed(seed + 1)
    seeds = [torch.randn(a.shape, generator=generator, device=a.device).to(a.dtype) for a, _ in pairs]
    with poisoned_memory():
        got = torch.autograd.grad(
            [a for a, _ in pairs], [inputs[n] for n in names], [copy_between_nans(s) for s in seeds]
        )
    expected = torch.autograd.grad(
        [b for _, b in pairs], [exact[n] for n in names], [s.double() for s in seeds]
    )
    return [_compare(f"gradient of {n}", a, b, limit) for n, a, b in zip(names, got, expected, strict=True)]


def _listed(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _compare(what: str, ours: Tensor, wanted: Tensor, limit: float) -> Error:
    if ours.shape != wanted.shape:
        return Error(f"{what}: shape {tuple(ours.shape)} for {tuple(wanted.shape)}", float("inf"), limit)
    if not ours.is_floating_point():
        return Error(what, float((ours != wanted).sum()), 0.0)
    if not ours.numel():
        return Error(what, 0.0, limit)
    ours, wanted = ours.detach().double(), wanted.detach()
    scale = float(wanted.abs().max())
    return Error(what, float((ours - wanted).abs().max()) / (scale or 1.0), limit)


def copy_between_nans(tensor: Tensor) -> Tensor:
    """A copy with the same values, shape and strides of a contiguous tensor, between NaN on both sides."""
    buffer = torch.full((tensor.numel() + 2 * GUARD,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    view.copy_(tensor.detach())
    return view


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it, floating tensors that are allocated without a value hold NaN."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            made = allocate(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return run

    with (
        mock.patch.object(torch, "empty", filled(torch.empty)),
        mock.patch.object(torch, "empty_like", filled(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", filled(torch.empty_strided)),
        mock.patch.object(Tensor, "new_empty", filled(Tensor.new_empty)),
    ):
        yield
