"""The tensors of a Hugging Face folder, one at a time, from one safetensors file or from indexed shards.

Opening reads every header, so a truncated file or a missing shard is an error before any weight is read.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from proactor.engine.config_keys import CheckpointError, read_json
from proactor.engine.reading import open_regular
from proactor.engine.types import one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MADV_DONTNEED = 4


def open_tensors(path: str | Path) -> Any:
    """A safetensors file, its header checked. Raises OSError and SafetensorError."""
    with open_regular(path) as file:  # the library would wait for the writer of a pipe
        # It opens a name twice, for header and tensors. This one stays with the file, whatever a writer puts
        # in its place meanwhile.
        return safe_open(f"/dev/fd/{file.fileno()}", framework="pt")


class Shards:
    """Read access by tensor name. Use as a context manager: files stay mapped until it ends."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, Any] = {}
        self._where = self._locate()

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """Every tensor name, in file order."""
        return list(self._where)

    def path(self, name: str) -> Path:
        """The file that holds (or should hold) the tensor."""
        return self._where.get(name, self.source)

    def error(self, name: str, what: str) -> CheckpointError:
        """A CheckpointError about one tensor, naming its file."""
        return CheckpointError(f"{self.path(name)}: {name}: {what}")

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header, without reading the tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Safetensors' name of the dtype ("BF16", "U8", ...), from the header."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU. It may share memory with the file: copy what is kept."""
        if name not in self._where:
            raise self.error(name, "missing")
        try:
            tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self.error(name, one_line(error)) from error
        return tensor

    def release(self, tensor: Tensor) -> None:
        """Let the system take back the pages of a tensor that was read, when what is kept of it was copied.

        They would count as this process's until the file is closed: twice the model.
        """
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_DONTNEED)

    @property
    def source(self) -> Path:
        """The single file, or the index when there is none: transformers looks in this order."""
        single, index = self.folder / SINGLE, self.folder / INDEX
        return index if index.exists() and not single.exists() else single

    def _slice(self, name: str) -> Any:
        if name not in self._where:
            raise self.error(name, "missing")
        return self._files[self._where[name]].get_slice(name)

    def _locate(self) -> dict[str, Path]:
        source = self.source
        if source.name == SINGLE:
            if not source.exists():
                others = sorted(p.name for p in self.folder.glob("*.bin")) + sorted(
                    p.name for p in self.folder.glob("*.pt*")
                )
                hint = f" (found {others[0]}: only safetensors files are read)" if others else ""
                raise CheckpointError(f"{source}: no such file, and no {INDEX} beside it{hint}")
            return dict.fromkeys(self._open(source), source)
        weight_map = read_json(source).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{source}: weight_map: should map tensor names to file names")
        held: dict[str, set[str]] = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise CheckpointError(f"{source}: weight_map: {shard!r} is not a file name")
            if not (self.folder / shard).exists():
                raise CheckpointError(f"{self.folder / shard}: this shard is named by {INDEX} but is missing")
            held[shard] = set(self._open(self.folder / shard))
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise CheckpointError(
                    f"{self.folder / shard}: {name}: missing, though {INDEX} places it here"
                )
        return {name: self.folder / shard for name, shard in weight_map.items()}

    def _open(self, path: Path) -> list[str]:
        try:
            opened = open_tensors(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: truncated or corrupted safetensors file: {one_line(error)}"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or one_line(error)}") from error
        self._files[path] = opened
        return list(opened.keys())
