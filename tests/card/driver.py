"""A pretended GPU driver: the project's own launching code runs on a machine without a GPU.

Triton's front end and compiler run for sm_90; the driver below them launches nothing and writes down what it
was asked to launch. It refuses what CUDA would (a grid too large, a tensor on the host) and an empty grid,
which Triton passes over in silence. Too much shared memory and too many warps Triton refuses by itself.
Tensors are on torch's "meta" device: shapes without memory, so that neither the weights of a 14B model nor
products with them cost anything. They hold no values; what is read back from them is 0.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proactor.engine.checkpoint import is_linear, weight_shapes
from proactor.engine.lora import LoRABuffer
from proactor.engine.lora_config import LoRA
from proactor.engine.model import Decoder
from proactor.engine.model_config import ModelConfig
from proactor.kernels import nf4_decode, op
from proactor.kernels.compile_launch import SHARED
from proactor.kernels.jit import interpreted, triton
from proactor.kernels.nf4 import BLOCK, NESTED_BLOCK, NF4_CODE, NF4Tensor

TARGET, CAPABILITY = "sm_90", 90
META = torch.device("meta")
THREADS = 1024
"""Most threads of a program."""
GRID = (2**31 - 1, 65535, 65535)
"""Largest grid."""


class Refused(Exception):
    """A launch that CUDA would refuse, or that would read the host's memory."""


# --- the driver ---


@dataclass(frozen=True, slots=True)
class Launched:
    """One launch: kernel, grid, warps a program, bytes of shared memory."""

    kernel: str
    grid: tuple[int, int, int]
    warps: int
    shared: int


class Driver:
    """What Triton asks of a driver. ``launched``: what was launched, in order."""

    def __init__(self) -> None:
        self.launched: list[Launched] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED[TARGET], "warpSize": 32},
            load_binary=self._load,
            unload_module=lambda module: None,
        )
        self.launcher_cls = partial(Launcher, self)

    def _load(self, name: str, code: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, THREADS  # module, function, registers, spills, most threads

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self) -> torch.device:
        return META


class Launcher:
    """Stands for the compiled launcher of one kernel."""

    def __init__(self, driver: Driver, source: Any, metadata: Any) -> None:
        self.driver, self.kernel = driver, source.fn.__name__
        self.warps, self.shared = metadata.num_warps, metadata.shared

    def __call__(self, x: int, y: int, z: int, *arguments: Any) -> None:
        """``arguments``: stream, function, two of metadata, two hooks, then the kernel's own."""
        grid = x, y, z
        if not all(1 <= n <= most for n, most in zip(grid, GRID)):
            raise Refused(f"{self.kernel}: grid {grid}, from (1, 1, 1) to {GRID} can be launched")
        for i, value in enumerate(arguments[6:]):
            if isinstance(value, Tensor) and value.device != META:
                raise Refused(f"{self.kernel}: argument {i} is on {value.device}")
        self.driver.launched.append(Launched(self.kernel, grid, self.warps, self.shared))


def pretend() -> Driver:
    """From now on this process believes that meta tensors are on an sm_90 GPU; returns its driver."""
    import proactor.engine.sampler
    import proactor.engine.trainer
    import proactor.kernels.registry  # noqa: F401

    if interpreted():
        raise Refused("TRITON_INTERPRET is set: kernels defined under it cannot be compiled")
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    os.environ["PROACTOR_KERNELS"] = "triton"
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # unset, its meaning changes between versions
    op.interpreted = lambda: True  # `use_triton` then takes any tensor; kernels ask `jit.interpreted`
    codes = {torch.bfloat16: 1, torch.float16: 2}
    _replace(op.device_name, lambda device: TARGET)
    _replace(nf4_decode.assembly, lambda x: codes.get(x.dtype, 0))
    return driver


def run_script(script: str, root: Path) -> list[Any]:
    """What a script that calls `pretend` prints, a JSON value a line.

    It has a process of its own, since the interpreter's kernels, which other tests need, do not compile.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put ``new`` wherever the project's modules hold ``old``, however they imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("proactor."):
            for key in [k for k, v in vars(module).items() if v is old]:
                setattr(module, key, new)


# --- a model ---


def empty_model(config: ModelConfig, lora: LoRA) -> Decoder:
    """A model in NF4 with an adapter, without memory."""
    weights = {
        name: _nf4(size) if is_linear(name) else torch.empty(size, dtype=torch.bfloat16, device=META)
        for name, size in weight_shapes(config).items()
    }
    return Decoder.build(config, weights, torch.bfloat16, LoRABuffer(config, lora, META), False)


def _nf4(shape: tuple[int, ...]) -> NF4Tensor:
    size = math.prod(shape)
    blocks = size // BLOCK
    packed, absmax = (torch.empty(n, dtype=torch.uint8, device=META) for n in (size // 2, blocks))
    coarse, code = (torch.empty(n, device=META) for n in (blocks // NESTED_BLOCK, 256))
    return NF4Tensor(packed, absmax, NF4_CODE, coarse, code, 0.0, (shape[0], shape[1]), torch.bfloat16)


# --- what is launched ---

Counts = Counter[tuple[str, str]]
"""Launches by (kind, name); a kind is "triton", "product" (of cuBLAS) or "torch"."""
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}
FREE = {"_unsafe_view", "_reshape_alias"}
"""Views that their schemas do not call so. Allocations (``empty``, ``new_empty``, ...) are free too."""


class Recorder(TorchDispatchMode):
    """Counts the launches of a `with` block; answers 0 where values of meta tensors are read back.

    An operation of torch counts as one launch if it gives a meta tensor, no view and not left unset.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver
        self.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to skip torch's compiler it is first imported: seconds

    def clear(self) -> None:
        """Count anew."""
        self.first, self.torch = len(self.driver.launched), Counts()

    def counts(self) -> Counts:
        """Launches since the last `clear`."""
        return self.torch + Counter(("triton", one.kernel) for one in self.driver.launched[self.first :])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if any(isinstance(x, Tensor) and x.is_meta for x in args):
            if name == "_local_scalar_dense":
                return 0
            if name == "equal":
                return True
            if name == "_to_copy" and kwargs.get("device", META) != META:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        free = func.is_view or name in FREE or name.startswith(("empty", "new_empty"))
        if isinstance(first, Tensor) and first.is_meta and not free:
            self.torch["product" if name in PRODUCTS else "torch", name] += 1
        return out
