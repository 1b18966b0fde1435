"""Safetensors files written tensor by tensor: the library's own writer wants a whole file in memory.

A file is the length of its header (8 bytes, little endian), the header (JSON: name -> dtype, shape and place
in the data; spaces may follow it), and the data without gaps [CODE: the format's page]. The header is written
last, into room that was left for it: a file whose writer was interrupted cannot be opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
ENTRY = 120
"""Most bytes of a header's entry beside its name."""


class StreamedFile:
    """One safetensors file; a context manager. ``names``: all that will be written.

    OSErrors are those of the file system, as for a full disk.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._room = -(-sum(len(name) + ENTRY for name in [*names, "__metadata__"]) // 8) * 8
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._held: dict[str, Tensor] = {}
        self._size = 0
        self._file = path.open("xb")
        self._file.seek(8 + self._room)

    def write(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, parts: Iterable[Tensor]) -> None:
        """Write a tensor, given as ``parts`` that follow each other in memory order."""
        start = self._size
        for part in parts:
            assert part.dtype == dtype, name
            data = part.contiguous().view(-1).view(torch.uint8).numpy()
            self._file.write(data.data)
            self._size += data.nbytes
        assert self._size - start == torch.Size(shape).numel() * dtype.itemsize, name
        place = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, self._size]}
        self._header[name] = place

    def write_all(self, tensors: Mapping[str, Tensor]) -> None:
        """Write whole tensors. Bytes of odd length come last, so that numbers are aligned."""
        for name, tensor in tensors.items():
            if tensor.nbytes % 4:
                self._held[name] = tensor
            else:
                self.write(name, tuple(tensor.shape), tensor.dtype, [tensor])

    def __enter__(self) -> StreamedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                return
            for name, tensor in self._held.items():
                self.write(name, tuple(tensor.shape), tensor.dtype, [tensor])
            header = json.dumps(self._header, separators=(",", ":")).encode()
            self._file.seek(0)
            self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
