"""Exact save and resume: one safetensors file with tensors and a JSON record, written beside its place and
renamed over the old one.

A kill or a full disk at any moment leaves the previous save readable. Counters and the user's own record
(data position, random state) travel in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from proactor.engine.faults import point
from proactor.engine.types import EngineError

FORMAT = "proactor-state-1"


def write_state(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` to ``path`` atomically.

    Raises EngineError naming the file when the disk is full or the folder cannot be written; an earlier save
    is untouched then.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.writing")
    data = save(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
        {FORMAT: json.dumps(record)},  # one key: several would come in random order
    )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            point("save.write")
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        point("save.rename")
        temporary.replace(final)
        _sync_folder(final.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EngineError(
            f"{final}: cannot save ({error.strerror}); the earlier save, if any, is untouched"
        ) from error


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a save. Raises EngineError naming the file when it is missing, cut off or of
    another kind.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise EngineError(f"{path}: not a saved engine state")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors handle is not a mapping)
    except FileNotFoundError as error:
        raise EngineError(f"{path}: no such save") from error
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path}: cannot be read as a saved engine state ({error})") from error
    return tensors, json.loads(metadata[FORMAT])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
