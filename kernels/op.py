"""What an operation is to everything that tests, compiles and times it: one record; and where it runs.

A file of this package computes one thing. It holds a plain torch reference, a faster torch form for CPUs
where there is one, the Triton kernels, the autograd function, the public function that dispatches between
them, and an `Op`: the record from which the correctness tests, the ahead-of-time compile check and the
benchmark draw all they know.

Dispatch: CUDA and ROCm tensors go to Triton, CPU tensors to torch. ``PROACTOR_KERNELS=reference`` keeps torch
everywhere, ``PROACTOR_KERNELS=triton`` takes Triton everywhere (CPU tensors then need
``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted

MODES = ("auto", "reference", "triton")
Arguments = dict[str, Any]
Outputs = Tensor | tuple[Tensor, ...]


def mode() -> str:
    """``PROACTOR_KERNELS``: auto (default), reference or triton. Raises KernelError for anything else."""
    chosen = os.environ.get("PROACTOR_KERNELS", "auto")
    if chosen not in MODES:
        raise KernelError(f"PROACTOR_KERNELS={chosen!r}: not one of {', '.join(MODES)}")
    return chosen


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` runs its Triton kernels. Raises KernelError where they are demanded
    and cannot run.
    """
    chosen = mode()
    if chosen == "reference":
        return False
    runs = HAS_TRITON and (tensor.is_cuda or interpreted())
    if chosen == "triton" and not runs:
        raise KernelError("PROACTOR_KERNELS=triton: a CPU tensor needs triton and TRITON_INTERPRET=1")
    return runs and (chosen == "triton" or tensor.is_cuda)


@dataclass(frozen=True, slots=True)
class Case:
    """Arguments to try an operation on: ``make(generator, device, dtype)`` draws them anew each time, by
    parameter name.
    """

    name: str
    make: Callable[[torch.Generator, torch.device, torch.dtype], Arguments]


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to compile a kernel ahead of time.

    ``types``: Triton's type of each argument that is not a constexpr ("*bf16", "*i32", "i32", "fp32"), by
    name; ``constants``: the constexprs; ``targets``: what to compile for ("sm_90", "gfx942"), empty:
    everything.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    targets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The kernel's name with its constants."""
        shown = ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in self.constants.items())
        return f"{self.kernel.__name__}[{shown};w{self.warps}s{self.stages}]"


@dataclass(frozen=True, slots=True)
class Op:
    """An operation's record.

    ``function`` is public, dispatches and is differentiable in the parameters ``gradients``; ``reference``
    takes the same arguments, in any float type up to float64, and is plain torch. An output's error is
    relative to the largest element of the reference's, and must stay below ``tolerance`` of the dtype.
    ``bytes`` and ``flops`` count what the arguments make necessary (each input read once, each output written
    once).
    """

    name: str
    function: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    cases: Sequence[Case]
    tolerance: Mapping[torch.dtype, float]
    bytes: Callable[..., int]
    flops: Callable[..., int]
    gradients: tuple[str, ...] = ()
    launches: Sequence[Launch] = field(default=())
    timed: Callable[[ModelShape], Sequence[Case]] | None = None
    """The cases worth timing for a model of this shape."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that decide its operations' shapes."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


QWEN25 = (
    ModelShape("Qwen2.5-14B", 5120, 48, 40, 8, 128, 13824, 152064),
    ModelShape("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18944, 152064),
    ModelShape("Qwen2.5-0.5B", 896, 24, 14, 2, 64, 4864, 151936),
)


@lru_cache
def device_name(device: torch.device) -> str:
    """The target a device's kernels compile for: "sm_90", "gfx942", or "interpreter" for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def settings_for(table: Mapping[str, Mapping[str, int]], device: torch.device) -> Mapping[str, int]:
    """The launch settings of ``table`` for ``device``, its "default" row where the device has none of its
    own.
    """
    return table.get(device_name(device), table["default"])


def require(condition: bool, argument: str, problem: str) -> None:
    """Raise KernelError("argument: problem") unless ``condition`` holds."""
    if not condition:
        raise KernelError(f"{argument}: {problem}")
