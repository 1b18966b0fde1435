"""Every operation, timed at a model's shapes and held to the device's ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.kernels.ceilings import Ceilings, seconds_of
from proactor.kernels.op import Case, ModelShape, Op
from proactor.kernels.registry import OPS


@dataclass(frozen=True, slots=True)
class OperationTime:
    """A forward call: median ``seconds``, the least bytes and operations it needs, and what those take.

    ``bound``: "memory" or "arithmetic". ``left_out``: why it was not timed; "" where it was.
    """

    name: str
    case: str
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0
    floor: float = 0.0
    bound: str = ""
    left_out: str = ""

    @property
    def share(self) -> float:
        """Of the time, what the ceilings need."""
        return self.floor / self.seconds if self.seconds else 0.0


@torch.no_grad()
def operation_times(
    shape: ModelShape,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    *,
    seconds: float = 0.3,
    most_flops: float = 2e11,
    only: str = "",
) -> Iterator[OperationTime]:
    """The operations of `OPS` whose names contain ``only``, on each case that is timed at ``shape``.

    ``dtype`` where an operation takes it, else its first. ``most_flops``: cases of more operations are left
    out by name, as on a CPU, where they take minutes; ``seconds``: about how long each is timed.
    """
    for op in OPS:
        if only not in op.name or op.timed is None:
            continue
        kind = dtype if dtype in op.tolerance else next(iter(op.tolerance))
        for case in op.timed(shape):
            yield _timed(op, case, device, kind, ceilings, seconds, most_flops)


def _timed(
    op: Op,
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    seconds: float,
    most_flops: float,
) -> OperationTime:
    arguments = case.make(torch.Generator(device=device).manual_seed(0), device, dtype)
    flops, count = op.flops(**arguments), op.bytes(**arguments)
    if flops > most_flops:
        return OperationTime(op.name, case.name, flops=flops, bytes=count, left_out=f"{flops:.1g} operations")
    # an operation may write into an argument, as the optimizer does: what it is given stays finite
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    taken = seconds_of(lambda: op.function(**given), device, seconds)
    floor, bound = ceilings.floor(count, flops)
    return OperationTime(op.name, case.name, taken, count, flops, floor, bound)
