"""Checkpoints of random weights in the layout of published ones, written tensor by tensor.

For measuring a model at its full size without a download: names, shapes, dtypes and files are those that
transformers with bitsandbytes saves, the numbers are not. Weights are randn / sqrt(fan-in), biases randn /
sqrt(length), norms 1; the linears of "bnb-nf4" are quantised from bfloat16, to bitsandbytes' bits. It takes
the largest linear in bfloat16 and some MB, whatever the model's size.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from proactor.engine import bnb4bit
from proactor.engine.checkpoint import is_linear, weight_shapes
from proactor.engine.checkpoint_writer import (
    MODEL_FILES,
    check_tokenizer,
    copy_tokenizer,
    plan_shards,
    shard_files,
    write_index,
)
from proactor.engine.config_keys import CheckpointError
from proactor.engine.files import atomic_folder
from proactor.engine.model_config import ModelConfig
from proactor.engine.safetensors_stream import StreamedFile
from proactor.engine.types import one_line
from proactor.kernels.nf4 import nf4_nbytes, quantize_nf4

Format = Literal["bnb-nf4", "bf16"]
SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 22
"""Numbers drawn at a time."""
STATE_BYTES = 256
"""About what the JSON of a quantised linear takes, and its entries of the header."""


def make_checkpoint(
    folder: str | Path,
    config_json: Mapping[str, Any],
    kind: Format,
    *,
    seed: int = 0,
    tokenizer_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a random model of ``config_json`` (its config.json) to ``folder``; returns its bytes.

    One ``seed`` gives one model: "bnb-nf4" is "bf16" quantised. ``tokenizer_from``: a folder whose tokenizer
    files are copied. ``progress(done, total)`` is called a tensor.

    Raises CheckpointError where the folder exists, the disk has no room, or ``tokenizer_from`` holds no
    tokenizer, before anything is written; also where it cannot be written, and nothing is left then.
    """
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CheckpointError(f"{folder}: exists; give a new folder")
    if tokenizer_from is not None:
        check_tokenizer(tokenizer_from)
    config = ModelConfig.from_dict(dict(config_json))
    shapes = weight_shapes(config)
    sizes = {name: _size(name, shape, kind) for name, shape in shapes.items()}
    total = sum(sizes.values())
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.parent).free
        if total > free:
            sizes_text = f"{total / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the disk are free"
            raise CheckpointError(f"{folder}: {sizes_text}")
        with atomic_folder(folder, owned=MODEL_FILES) as temporary:
            if tokenizer_from is not None:
                copy_tokenizer(Path(tokenizer_from), temporary)
            _write(temporary, shapes, kind, seed, plan_shards(sizes, shard_bytes), progress)
            written = _config(config_json, kind)
            (temporary / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: not written, nothing is left of it: {one_line(error)}") from error
    return total


def _size(name: str, shape: tuple[int, ...], kind: Format) -> int:
    if kind == "bnb-nf4" and is_linear(name):
        return nf4_nbytes((shape[0], shape[1])) + STATE_BYTES
    return 2 * math.prod(shape)


def _config(config_json: Mapping[str, Any], kind: Format) -> dict[str, Any]:
    """What is written: bfloat16, quantised as ``kind`` says, whatever ``config_json`` says of either."""
    given = {k: v for k, v in config_json.items() if k not in ("dtype", "torch_dtype", "quantization_config")}
    config = {"architectures": ["Qwen2ForCausalLM"], **given, "torch_dtype": "bfloat16"}
    if kind == "bnb-nf4":
        config["quantization_config"] = bnb4bit.quantization_config(["lm_head"], True, torch.bfloat16)
    return config


def _write(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    kind: Format,
    seed: int,
    plan: list[list[str]],
    progress: Callable[[int, int], None] | None,
) -> None:
    order = {name: index for index, name in enumerate(shapes)}
    places: dict[str, str] = {}
    total = done = 0
    for file, names in zip(shard_files(len(plan)), plan, strict=True):
        quantized = {name for name in names if kind == "bnb-nf4" and is_linear(name)}
        stored = [*names, *(name + part for name in names if name in quantized for part in bnb4bit.PARTS)]
        with StreamedFile(folder / file, stored) as stream:
            for name in names:
                parts = _draw(name, shapes[name], seed * len(order) + order[name])
                if name in quantized:
                    dense = torch.cat(list(parts)).view(shapes[name])
                    stream.write_all(bnb4bit.pack(name, quantize_nf4(dense)))
                else:
                    stream.write(name, shapes[name], torch.bfloat16, parts)
                done += 1
                if progress is not None:
                    progress(done, len(shapes))
        places |= dict.fromkeys(stored, file)
        total += (folder / file).stat().st_size
    if len(plan) > 1:
        write_index(folder, places, total)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """The numbers of a tensor, bf16, some at a time."""
    size = math.prod(shape)
    if name.endswith("norm.weight"):
        yield torch.ones(size, dtype=torch.bfloat16)
        return
    generator = torch.Generator().manual_seed(seed % 2**64)
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        yield torch.randn(count, generator=generator).mul_(shape[-1] ** -0.5).to(torch.bfloat16)
