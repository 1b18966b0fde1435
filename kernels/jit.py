"""Triton where it is installed. Elsewhere `jit` leaves a function as it is and only the torch forms run.

Set ``TRITON_INTERPRET=1`` before the first import to run kernels on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["HAS_TRITON", "interpreted", "jit", "tl", "triton"]

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    jit: Callable[[Any], Any] = triton.jit
except ImportError:  # no wheel for this system

    class _Missing:
        """Stands for ``triton`` and ``tl`` in annotations and in bodies that never run."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self

    triton = tl = _Missing()
    HAS_TRITON = False

    def jit(function: Function) -> Function:
        return function


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors.

    Its bfloat16 arithmetic is wrong, so kernels take a constexpr ``WIDE`` from here and widen what they load before they compute.
    """
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
