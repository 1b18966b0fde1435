"""Adapters leave the engine: as a PEFT folder, or merged into their base as a plain model folder.

A merged weight is W + s B A, in float32, rounded once. W is as stored; a 4-bit one is dequantised to the
dtype that its file names, which is what the engine and bitsandbytes multiply by. Tensors are read, merged and
written shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from proactor.engine.adapter_io import Pairs, read_peft, write_peft
from proactor.engine.checkpoint import check_weights, read_plain, resolve_model, weight_shapes
from proactor.engine.checkpoint_writer import SHARD_BYTES, write_folder
from proactor.engine.config_keys import CheckpointError, read_json
from proactor.engine.lora_targets import adapted, module_name
from proactor.engine.model_config import ModelConfig
from proactor.engine.reading import check_name
from proactor.engine.shards import Shards
from proactor.engine.types import one_line


def export_peft(adapter: str | Path, base: str | Path, folder: str | Path) -> None:
    """Write an adapter as a PEFT folder of its own, with ``base`` as its model and that model's tokenizer.

    Raises CheckpointError for an adapter that does not fit ``base``, and for a ``folder`` that is not empty
    or cannot be written.
    """
    _refuse_used(folder)
    source = resolve_model(base)
    pairs, lora = read_peft(adapter, ModelConfig.from_folder(source))
    write_peft(folder, pairs, lora, str(base), source)


def export_merged(
    adapter: str | Path,
    base: str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``base`` (a folder or hub id, 4-bit or not) with an adapter merged into it, all in ``dtype``.

    Tokenizer, chat template, end ids and generation config come along; tied embeddings stay tied. Files are
    split above ``shard_bytes``, and no more than that is held at once. ``progress(done, total)`` is called
    for each tensor. Errors as `export_peft`; nothing is left of a folder that could not be finished.
    """
    _refuse_used(folder)
    source = resolve_model(base)
    config = ModelConfig.from_folder(source)
    pairs, lora = read_peft(adapter, config)
    scales = {module_name(*place): pair.scale for place, pair in adapted(lora, config.num_layers).items()}
    shapes = weight_shapes(config)
    done = 0
    with Shards(source) as shards:
        check_weights(shards, config)

        def make(name: str) -> Tensor:
            nonlocal done
            weight = read_plain(shards, name, shapes[name])
            out = _merged(weight, pairs, scales, name.removesuffix(".weight")).to(dtype)
            if not all(bool(end.isfinite()) for end in out.aminmax()):
                raise shards.error(name, f"with the adapter it does not fit {dtype}")
            done += 1
            if progress is not None:
                progress(done, len(shapes))
            return out

        sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
        write_folder(folder, _plain_config(source, dtype), sizes, make, source, shard_bytes)


def _merged(weight: Tensor, pairs: Pairs, scales: dict[str, float], module: str) -> Tensor:
    if module not in pairs:
        return weight
    a, b = pairs[module]
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scales[module])


def _plain_config(source: Path, dtype: torch.dtype) -> dict[str, object]:
    """The model's config.json without quantisation, and with the dtype that it then has."""
    config = read_json(source / "config.json")
    config.pop("quantization_config", None)
    named = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    return config | dict.fromkeys(named, str(dtype).removeprefix("torch."))


def _refuse_used(folder: str | Path) -> None:
    """Raise CheckpointError where an export would mix with, or replace, something else."""
    try:
        check_name(folder)
        used = Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir()))
    except OSError as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from None
    if used:
        raise CheckpointError(f"{folder}: exists and is not empty; an export goes into a folder of its own")
