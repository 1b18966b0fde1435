"""Memory fences: detect writes outside a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

FENCE = 16384
"""Bytes of a known pattern on either side."""
PATTERN = 0x5A


@contextmanager
def fenced_memory() -> Iterator[None]:
    """Context in which `torch.empty` allocates between fences; AssertionError on exit if one changed."""
    buffers: list[Tensor] = []

    def empty(*shape: Any, dtype: torch.dtype = torch.float32, device: Any = None, **rest: Any) -> Tensor:
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        length = torch.Size(sizes).numel() * dtype.itemsize
        buffer = torch.full((length + 2 * FENCE,), PATTERN, dtype=torch.uint8, device=device)
        buffers.append(buffer)
        return buffer[FENCE : FENCE + length].view(dtype).view(sizes)

    with mock.patch.object(torch, "empty", empty):
        yield
    assert buffers
    for buffer in buffers:
        assert bool((buffer[:FENCE] == PATTERN).all()) and bool((buffer[-FENCE:] == PATTERN).all())
