"""Triton where it is installed. Elsewhere `jit` leaves a function as it is and only the torch forms run.

Set ``TRITON_INTERPRET=1`` before the first import to run kernels on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["HAS_TRITON", "interpreted", "jit", "jit_any", "tl", "triton"]

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:  # no wheel for this system

    class _Missing:
        """Stands for ``triton`` and ``tl`` in annotations and in bodies that never run."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self

    triton = tl = _Missing()
    HAS_TRITON = False


def jit(function: Any) -> Any:
    """A kernel, or a function that kernels call."""
    return triton.jit(function) if HAS_TRITON else function


def jit_any(*names: str) -> Callable[[Any], Any]:
    """A kernel that is compiled once whatever the integers of these names are.

    Triton otherwise compiles anew where an integer is 1, is a multiple of 16, and is neither. That pays where
    a size decides which loads are wide; a number that changes from step to step (rows, parts of the keys)
    only stops the run for a compiler.
    """

    def made(function: Any) -> Any:
        return triton.jit(function, do_not_specialize=names) if HAS_TRITON else function

    return made


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors.

    Its bfloat16 arithmetic is wrong, so kernels take a constexpr ``WIDE`` from here and widen what they load
    before they compute.
    """
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
