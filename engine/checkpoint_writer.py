"""Model folders written: tensors as they are or in 4 bits, as transformers with bitsandbytes reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from proactor.engine import bnb4bit
from proactor.engine.checkpoint import is_linear
from proactor.engine.config_keys import CheckpointError
from proactor.engine.files import atomic_folder
from proactor.engine.shards import INDEX, SINGLE
from proactor.engine.types import one_line
from proactor.kernels.nf4 import NF4Tensor, quantize_nf4

GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    GENERATION,
)
SHARD_BYTES = 5_000_000_000
MODEL_FILES = ("*.safetensors", INDEX, "config.json", *TOKENIZER_FILES)


def save_bnb4bit(
    folder: str | Path,
    config_json: Mapping[str, Any],
    tensors: Mapping[str, Tensor | NF4Tensor],
    tokenizer_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `load_weights` reads, and transformers with bitsandbytes too.

    NF4Tensors are written in 4 bits, the rest as it is. ``config_json`` is the model's config.json; its
    `quantization_config` is set here. ``tokenizer_from`` is a folder whose tokenizer files (and
    generation_config.json) are copied. Files are split above ``shard_bytes``. Atomic: on any failure an
    earlier save is untouched.

    Raises CheckpointError when the folder cannot be written, or ``tokenizer_from`` is no folder.
    """
    plain = [
        name.removesuffix(".weight")
        for name, t in tensors.items()
        if is_linear(name) and isinstance(t, Tensor)
    ]
    quantized = [t for t in tensors.values() if isinstance(t, NF4Tensor)]
    config = dict(config_json)
    if quantized:
        nested = any(t.nested for t in quantized)
        config["quantization_config"] = bnb4bit.quantization_config(
            ["lm_head", *plain], nested, quantized[0].dtype
        )
    else:
        config.pop("quantization_config", None)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    write_folder(folder, config, sizes, tensors.__getitem__, tokenizer_from, shard_bytes)


def write_folder(
    folder: str | Path,
    config_json: Mapping[str, Any],
    sizes: Mapping[str, int],
    make: Callable[[str], Tensor | NF4Tensor],
    tokenizer_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder whose tensors, of ``sizes`` bytes, ``make`` gives by name.

    At most one shard's tensors are held. Nothing is begun where the disk has no room. The rest as
    `save_bnb4bit`.
    """
    total = sum(sizes.values())
    if tokenizer_from is not None and not Path(tokenizer_from).is_dir():
        raise CheckpointError(f"{tokenizer_from}: no such folder, to copy a tokenizer from")
    try:
        with atomic_folder(folder, owned=MODEL_FILES) as temporary:
            if (free := shutil.disk_usage(temporary).free) < total:
                raise CheckpointError(
                    f"{folder}: needs {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there"
                )
            (temporary / "config.json").write_text(json.dumps(config_json, indent=2) + "\n", encoding="utf-8")
            if tokenizer_from is not None:
                copy_tokenizer(tokenizer_from, temporary)
            _write_shards(temporary, sizes, make, shard_bytes)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot be written, an earlier save is untouched: {one_line(error)}"
        ) from error


def save_quantized(
    folder: str | Path,
    config_json: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer_from: str | Path | None = None,
) -> None:
    """Quantise the linears of plain ``tensors`` to NF4, with double quantisation, and `save_bnb4bit` them.

    Raises CheckpointError when the folder cannot be written, KernelError for an unquantisable tensor.
    """
    packed = {name: quantize_nf4(tensor) if is_linear(name) else tensor for name, tensor in tensors.items()}
    save_bnb4bit(folder, config_json, packed, tokenizer_from)


def copy_tokenizer(source: str | Path, target: Path) -> None:
    """Copy the tokenizer's files, chat template and generation config of a model folder."""
    for path in _tokenizer_files(source):
        shutil.copyfile(path, target / path.name)


def check_tokenizer(source: str | Path) -> None:
    """Raise CheckpointError for a folder without a tokenizer's files."""
    if not any(path.name != GENERATION for path in _tokenizer_files(source)):
        raise CheckpointError(
            f"{source}: {'holds no tokenizer' if Path(source).is_dir() else 'no such folder'}"
        )


def _tokenizer_files(source: str | Path) -> list[Path]:
    return sorted(
        {path for pattern in TOKENIZER_FILES for path in Path(source).glob(pattern) if path.is_file()}
    )


def _write_shards(
    folder: Path, sizes: Mapping[str, int], make: Callable[[str], Tensor | NF4Tensor], shard_bytes: int
) -> None:
    """One file, or numbered shards with an index; only one shard's tensors are on the CPU at a time."""
    plan = plan_shards(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    for file, names in zip(shard_files(len(plan)), plan, strict=True):
        parts: dict[str, Tensor] = {}
        shared: set[int] = set()  # a tied head is its embedding, and a file holds each tensor's own bytes
        for name in names:
            tensor = make(name)
            if isinstance(tensor, NF4Tensor):
                parts |= bnb4bit.pack(name, tensor)
                continue
            tensor = tensor.detach().cpu().contiguous()
            place = tensor.untyped_storage().data_ptr()
            parts[name] = tensor.clone() if place in shared else tensor
            shared.add(place)
        save_file(parts, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(parts, file)
    if len(plan) > 1:
        write_index(folder, weight_map, sum(sizes.values()))


def shard_files(count: int) -> list[str]:
    """The names of a model's files, as transformers gives them."""
    numbered = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return [SINGLE] if count == 1 else numbered


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write which file holds which tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Names by file: in order, a new file where ``shard_bytes`` would be passed. ``sizes``: bytes by name."""
    plan: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if plan[-1] and held + size > shard_bytes:
            plan.append([])
            held = 0
        plan[-1].append(name)
        held += size
    return plan
