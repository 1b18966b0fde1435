"""Exact save and resume: one safetensors file with the tensors, and a JSON record in its metadata.

The record holds counters and the caller's own values (data position, random state). Writing is atomic: a kill
or a full disk at any moment leaves the previous save readable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from proactor.engine.faults import fault_point
from proactor.engine.files import open_atomic
from proactor.engine.types import EngineError

FORMAT = "proactor-state-1"


def write_state(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` to ``path``, atomically.

    Raises EngineError naming the file when it cannot be written; an earlier save is then untouched.
    """
    data = save(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
        {FORMAT: json.dumps(record)},  # one key: safetensors writes several in random order
    )
    half = len(data) // 2
    try:
        with open_atomic(path) as file:
            file.write(data[:half])
            file.flush()
            fault_point("save.write")
            file.write(data[half:])
            file.flush()
            fault_point("save.rename")
    except OSError as error:
        raise EngineError(
            f"{path}: cannot save ({error.strerror}); the earlier save, if any, is untouched"
        ) from error


def save_state(path: str | Path, state: Mapping[str, Any], caller: Mapping[str, Any]) -> None:
    """`write_state` of an `Engine.state_dict` and the caller's record."""
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
    write_state(path, tensors, {"engine": numbers, "caller": caller})


def load_state(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`Engine.state_dict`, the caller's record) of a `save_state`. Raises like `read_state`."""
    tensors, record = read_state(path)
    return {**tensors, **record["engine"]}, record["caller"]


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, record) of a save. Raises EngineError naming a file that is missing, truncated or no save."""
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
