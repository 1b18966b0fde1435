"""Triton if it is installed. Otherwise `jit` returns a function unchanged, and only the torch forms run.

Set ``TRITON_INTERPRET=1`` before the first import to run kernels on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["HAS_TRITON", "interpreted", "jit", "jit_any", "tl", "triton"]

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # no wheel for this system

    class _Missing:
        """Stand-in for ``triton`` and ``tl`` in annotations and in kernel bodies, which then never run."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self

    triton = tl = _Missing()
    HAS_TRITON = False


def jit(function: Any) -> Any:
    """Decorator of a kernel, or of a device function that kernels call."""
    return triton.jit(function) if HAS_TRITON else function


def jit_any(*names: str) -> Callable[[Any], Any]:
    """Decorator of a kernel that is not specialised on the integer arguments ``names``.

    By default Triton compiles one variant for 1, one for multiples of 16 and one for the rest. That pays for
    a size that decides how wide loads are. For a number that changes every step (rows, parts of the keys) it
    would only interrupt a run with compilation.
    """

    def decorate(function: Any) -> Any:
        return triton.jit(function, do_not_specialize=names) if HAS_TRITON else function

    return decorate


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors.

    The interpreter miscomputes bfloat16. Kernels therefore take a constexpr ``WIDE`` from here, and load as
    float32 where it is set.
    """
    return HAS_TRITON and bool(triton.knobs.runtime.interpret)
