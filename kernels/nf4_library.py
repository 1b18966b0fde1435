"""bitsandbytes' CPU library for NF4: dequantise, and multiply with the weight decoded in registers.

    fused:  y[m, n] = Σ_k x[m, k] * bf16(code[q[n, k]] * bf16(scale[n, k // 64])), x and y bfloat16

The product needs AVX512-BF16, and the codes in an order of its own (`kernels/nf4_cpu.py`). Callers try both
on a small weight before their first use.
[CODE] bitsandbytes 0.50 `backends/cpu/ops.py`, `functional._convert_weight_packed_for_cpu`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.op import mode

BLOCK = 64
KNOWN = "0.50."
"""Versions of bitsandbytes whose product we call ourselves."""
FUSED_ROWS = 32
"""Outputs whose codes the fused product reads together."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = torch.linspace(-1, 1, 16)
"""Tell the library that codes are NF4's, whose second level is negative; it has a table of its own [CODE]."""
LARGEST_BLOCK = 1024
"""Its AVX-512 form loses digits in larger blocks [CODE]."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bitsandbytes' advice to install a package: we need none."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=1)
def _functional() -> ModuleType | None:
    """`bitsandbytes.functional`; None where it cannot be imported, or has no CPU library."""
    try:
        with _quiet():
            from bitsandbytes import cextension, functional
    except (ImportError, OSError, RuntimeError):  # no package; no library for this system
        return None
    return None if "Mock" in type(cextension.lib).__name__ else functional


def library_dequantize(
    packed: Tensor, scales: Tensor, shape: tuple[int, int], blocksize: int, dtype: torch.dtype
) -> Tensor:
    """The weight ``shape`` in ``dtype``, of ``packed`` u8 codes and ``scales`` f32 [blocks]."""
    found = torch.ops.bitsandbytes.dequantize_4bit(packed, scales, blocksize, "nf4", list(shape), dtype)
    return found.view(shape)  # type: ignore[no-any-return]


def library_takes(packed: Tensor, shape: tuple[int, int], blocksize: int, dtype: torch.dtype) -> bool:
    """Whether `library_dequantize` is made for these codes: on a CPU, in rows of whole blocks.

    Its AVX-512 form takes wrong scales for other rows.
    """
    fits = blocksize <= LARGEST_BLOCK and shape[1] % blocksize == 0 and dtype in FLOATS
    return fits and packed.device.type == "cpu" and mode() != "reference"


def library_available() -> bool:
    """Whether bitsandbytes has a library for this processor. The first call imports it (some seconds)."""
    return _functional() is not None


def _version() -> str:
    """bitsandbytes' version as it says itself, with or without the metadata of a package."""
    import bitsandbytes

    return str(bitsandbytes.__version__)


@lru_cache(maxsize=1)
def _product() -> Callable[..., None] | None:
    """The library's own function, in a version whose arguments are known; None: call it by its operation.

    The operation prepares each call for 10 to 20 us, a third of a product of a small model.
    """
    functional = _functional()
    if functional is None or not _version().startswith(KNOWN):
        return None
    function = getattr(ctypes.CDLL(functional.lib._lib._name), "gemv_4bit_inference_cpu_nf4_bf16", None)
    if function is None:
        return None
    sizes, pointers = [ctypes.c_int64], [ctypes.c_void_p]
    function.argtypes, function.restype = 3 * sizes + 4 * pointers + 3 * sizes, None
    return function  # type: ignore[no-any-return]


def fused_linear(x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """``x Wᵀ`` [T, N] of x bf16 [T, K], contiguous; W of ``shape`` (N, K), codes interleaved, scales bf16
    [K/64, N]. Raises KernelError for anything else.
    """
    outputs, inputs = shape
    if x.dtype != torch.bfloat16 or x.ndim != 2 or x.shape[1] != inputs or not x.is_contiguous():
        raise KernelError(f"x: {x.dtype} {tuple(x.shape)}: bfloat16 [T, {inputs}], contiguous, wanted")
    held = codes.numel() * 2, scales.numel() * BLOCK
    if held != (outputs * inputs,) * 2 or scales.dtype != torch.bfloat16:
        raise KernelError(f"codes and scales: of {held[0]} and {held[1]} weights, {outputs * inputs} wanted")
    if (product := _product()) is not None:
        rows = len(x)
        y = x.new_empty(rows, outputs)
        pointers = (t.data_ptr() for t in (x, codes, scales, y))
        product(rows, outputs, inputs, *pointers, BLOCK, inputs, outputs)
        return y
    fused = torch.ops.bitsandbytes.gemv_4bit
    return fused(x, codes, list(shape), scales, LEVELS, BLOCK)  # type: ignore[no-any-return]


def library_fuses() -> bool:
    """Whether `fused_linear` runs on this processor."""
    functional = None if mode() == "reference" else _functional()
    return functional is not None and bool(getattr(functional, "has_avx512bf16", bool)())
