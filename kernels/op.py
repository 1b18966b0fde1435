"""`Op`: one record that drives an operation's tests, compile check and benchmark. Also the dispatch.

An operation is one file, or a few with a common prefix: a plain torch reference, a faster torch form for CPUs
where there is one, the Triton kernels, the autograd function, the public function, and the `Op` record.

Dispatch: CUDA and ROCm tensors go to Triton, CPU tensors to torch. ``PROACTOR_KERNELS=reference`` uses torch
everywhere, ``PROACTOR_KERNELS=triton`` Triton everywhere; CPU tensors then need ``TRITON_INTERPRET=1``.
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
GPUS = ("cuda",)
"""Device types on which kernels run; ROCm's is called cuda too."""
Arguments = dict[str, Any]
Outputs = Tensor | tuple[Tensor, ...]


def mode() -> str:
    """``PROACTOR_KERNELS``: auto (default), reference or triton. Raises KernelError for anything else."""
    chosen = os.environ.get("PROACTOR_KERNELS", "auto")
    if chosen not in MODES:
        raise KernelError(f"PROACTOR_KERNELS={chosen!r}: not one of {', '.join(MODES)}")
    return chosen


def on_gpu(device: torch.device) -> bool:
    """Whether ``device`` is a GPU: its values cost the host a wait, and its pointers are for kernels only."""
    return device.type in GPUS


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on ``tensor`` runs in Triton. Raises KernelError if it must but cannot."""
    chosen = mode()
    gpu = on_gpu(tensor.device)
    if chosen == "reference" or (chosen == "auto" and not gpu):
        return False
    runs = HAS_TRITON and (gpu or interpreted())
    if chosen == "triton" and not runs:
        raise KernelError("PROACTOR_KERNELS=triton: a CPU tensor needs triton and TRITON_INTERPRET=1")
    return runs


@dataclass(frozen=True, slots=True)
class Case:
    """Named test arguments: ``make(generator, device, dtype)`` draws new ones, keyed by parameter name."""

    name: str
    make: Callable[[torch.Generator, torch.device, torch.dtype], Arguments]


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to compile a kernel ahead of time.

    ``types``: argument name -> Triton type ("*bf16", "*i32", "i32", "fp32"), for all but the constexprs;
    ``constants``: the constexprs; ``targets``: devices to compile for ("sm_90", "gfx942"; empty: all).
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
        constants = ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in self.constants.items())
        return f"{self.kernel.__name__}[{constants};w{self.warps}s{self.stages}]"


@dataclass(frozen=True, slots=True)
class Op:
    """An operation's record.

    ``function`` is the public function: it dispatches, and is differentiable in the parameters ``gradients``.
    ``reference`` is plain torch on the same arguments, in any float dtype up to float64. The error of an
    output, relative to the largest element of the reference output, must not exceed ``tolerance[dtype]``.
    ``bytes`` and ``flops`` count the minimum for the arguments: one read per input, one write per output.
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
    """Cases to benchmark for a model of this shape."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that determine the shapes of its operations."""

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
    """Compile target of a device: "sm_90", "gfx942", or "interpreter" for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def settings_for(table: Mapping[str, Mapping[str, int]], device: torch.device) -> Mapping[str, int]:
    """The row of a table of launch settings for ``device``; the "default" row if it has none."""
    return table.get(device_name(device), table["default"])


def require(condition: bool, argument: str, problem: str) -> None:
    """Raise KernelError("argument: problem") unless ``condition`` holds."""
    if not condition:
        raise KernelError(f"{argument}: {problem}")
