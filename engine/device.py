"""The device of an engine: which one, whether its kernels run, and how its allocator behaves."""

from __future__ import annotations

import os

import torch

from proactor.engine.model_config import DTYPES
from proactor.engine.types import EngineError, one_line
from proactor.kernels.jit import triton
from proactor.kernels.norm import rms_norm
from proactor.kernels.op import use_triton

LEAST_TRITON = (3, 3)
"""Oldest Triton whose compiler takes the kernels, as in pyproject.toml."""


def choose_device(name: str) -> torch.device:
    """The device of `EngineConfig.device`; a GPU also becomes the current one, because kernels launch there.

    "auto" and "cuda" take this rank's GPU (``LOCAL_RANK``). Raises EngineError when there is no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        raise EngineError(f"device={name!r}: this machine has no CUDA device ({_why_no_gpu()})")
    prepare_allocator()
    if name in ("auto", "cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    device = torch.device(name)
    if device.index >= gpus:
        raise EngineError(f"device={name!r}: this machine has {gpus} CUDA devices, numbered from 0")
    torch.cuda.set_device(device)
    return device


def _why_no_gpu() -> str:
    """What torch says of a GPU that it cannot use, for example that the driver is too old."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for CPUs: install a CUDA build, or set device to cpu"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return one_line(error)
    return "nvidia-smi lists those that the driver knows, CUDA_VISIBLE_DEVICES hides others"


def prepare_allocator() -> None:
    """Let the allocator grow its segments, so that arenas of changing use leave no gaps.

    Only where the caller has not chosen an allocator, and before CUDA starts, which reads the variable once.
    """
    chosen = any(f"PYTORCH_{kind}ALLOC_CONF" in os.environ for kind in ("", "CUDA_", "HIP_"))
    if not chosen and torch.version.cuda is not None and not torch.cuda.is_initialized():
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def check_kernels(device: torch.device) -> None:
    """Compile and run one small kernel on a GPU.

    Raises EngineError, naming versions and what to update, where Triton or the driver is too old for it.
    """
    if device.type != "cuda" or not use_triton(torch.empty(0, device=device)):
        return
    otherwise = "or set PROACTOR_KERNELS=reference, which is slow"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LEAST_TRITON:
        least = ".".join(map(str, LEAST_TRITON))
        found = f"triton {triton.__version__}"
        raise EngineError(f"{found}: the kernels need {least} or later: update it, {otherwise}")
    try:
        rms_norm(torch.ones(1, 64, device=device), torch.ones(64, device=device), 1e-6).tolist()
    except (RuntimeError, OSError, triton.errors.TritonError) as error:
        raise EngineError(
            f"{device}: the first kernel failed ({one_line(error)}): update the driver (nvidia-smi shows its "
            f"version) or triton ({triton.__version__}), {otherwise}"
        ) from error


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `EngineConfig.dtype`; "auto" is float32 on a CPU, bfloat16 on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return DTYPES[name]
