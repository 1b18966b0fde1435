"""Exact save and resume: one safetensors file with the tensors, and a JSON record in its metadata; and what
is checked before a state replaces another.

The record holds counters, the caller's own values (data position, random state) and a checksum over all of
it. Writing is atomic: a kill or a full disk at any moment leaves the previous save readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from proactor.engine.faults import fault_point
from proactor.engine.files import open_atomic
from proactor.engine.shards import open_tensors
from proactor.engine.types import EngineError

FORMAT = "proactor-state-1"
CHECKSUM = "sha256"
"""Key of the record with the checksum of tensors and record; versions before it saved none."""


def write_state(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``record`` to ``path``, atomically.

    Raises EngineError naming the file when it cannot be written, also for a record that JSON cannot hold; an
    earlier save is then untouched.
    """
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # read back as it will be: JSON has neither tuples nor integer keys
    try:
        known = json.loads(json.dumps(record))
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineError(f"{path}: cannot save, the record is no JSON ({error})") from None
    marked = {**known, CHECKSUM: checksum(plain, known)}
    data = save(plain, {FORMAT: json.dumps(marked)})  # one key: safetensors writes several in random order
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


def load_state(
    path: str | Path, say: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`Engine.state_dict`, the caller's record) of a `save_state`. Raises like `read_state`."""
    tensors, record = read_state(path, say)
    for part in ("engine", "caller"):
        if not isinstance(record.get(part), dict):
            raise EngineError(f"{path}: holds no record {part!r}: not a saved engine state")
    return {**tensors, **record["engine"]}, record["caller"]


def read_state(
    path: str | Path, say: Callable[[str], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, record) of a save. ``say`` gets a line for a save of an older version, without a checksum.

    Raises EngineError naming a file that is missing, truncated, no save, or not what was written.
    """
    try:
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise EngineError(f"{path}: not a saved engine state")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors handle is not a mapping)
    except FileNotFoundError as error:
        raise EngineError(f"{path}: no such save") from error
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path}: cannot be read as a saved engine state ({error})") from error
    try:
        record = json.loads(metadata[FORMAT])
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path}: damaged, its record is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise EngineError(f"{path}: damaged, its record is no object")
    written = record.pop(CHECKSUM, None)
    if written is None:
        if say is not None:
            say(f"{path}: saved by an older version without a checksum, so damage to it would not show")
    elif written != checksum(tensors, record):
        raise EngineError(f"{path}: damaged, it is not what was saved (its checksum differs)")
    return tensors, record


def checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON ``record``, and of name, dtype, shape and bytes of each tensor (on the CPU)."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_state(
    state: Mapping[str, Any], identity: Mapping[str, Any], shape: torch.Size, where: str = "state"
) -> None:
    """Raise EngineError, beginning with ``where``, unless ``state`` is that of a trainer.

    Refused are another ``identity`` (rank, scale, targets) or ``shape`` of the adapter, missing keys, tensors
    that are not float32 or not finite, a negative second moment, and counts that are no integers of at least
    0. States of older versions record neither identity nor ``empty_steps``.
    """
    recorded = state.get("lora", {})
    if not isinstance(recorded, Mapping):
        raise EngineError(f"{where}: lora should be rank, scale and targets, not {recorded!r}")
    for name, mine in identity.items():
        if recorded.get(name, mine) != mine and name != "modules":
            raise EngineError(
                f"{where}: an adapter of {name} {recorded[name]}, this engine's has {name} {mine}"
            )
    if recorded and (problem := _module_problem(recorded.get("modules"), identity.get("modules", {}))):
        raise EngineError(f"{where}: {problem}")
    for name in ("adapter", "m", "v"):
        if problem := _tensor_problem(state.get(name), shape):
            raise EngineError(f"{where}: {name} {problem}")
    if bool((state["v"] < 0).any()):
        raise EngineError(f"{where}: v holds negative numbers, which no second moment does")
    check_counts(state, ("steps", "skipped_steps"), optional=("empty_steps",), where=where)


def _module_problem(recorded: object, mine: Mapping[str, Any]) -> str:
    """How the linears differ whose rank and scale are not the adapter's common ones, or that have none."""
    theirs = {} if recorded is None else recorded
    if not isinstance(theirs, Mapping):
        return f"lora: modules should be ranks and scales by name, not {recorded!r}"
    for name in sorted({*theirs, *mine}):
        if theirs.get(name, "common") != mine.get(name, "common"):
            has = [
                "no adapter" if pair is None else f"(rank, scale) {pair}"
                for pair in (side.get(name, "common") for side in (theirs, mine))
            ]
            return f"{name} has {has[0]}, in this engine {has[1]}"
    return ""


def _tensor_problem(value: object, shape: torch.Size) -> str:
    if not isinstance(value, Tensor):
        return "is missing" if value is None else f"should be a tensor, not a {type(value).__name__}"
    if value.dtype != torch.float32:
        return f"is {str(value.dtype).removeprefix('torch.')}, not float32"
    if value.shape != shape:
        return f"of {value.numel()} numbers, this engine's has {shape.numel()}"
    return "" if bool(torch.isfinite(value).all()) else "holds values that are not finite"


def check_counts(
    state: Mapping[str, Any], names: Sequence[str], optional: Sequence[str] = (), where: str = "state"
) -> None:
    """Raise EngineError where a count of ``state`` is missing or no integer of at least 0."""
    for name in (*names, *(name for name in optional if name in state)):
        value = state.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            what = f"should be an integer of at least 0, not {value!r}" if name in state else "is missing"
            raise EngineError(f"{where}: {name} {what}")
