"""LoRA adapters in PEFT's layout: ``adapter_config.json`` beside ``adapter_model.safetensors``.

Supported is one plain low-rank pair for any of the seven linears, with ranks and scales as PEFT's settings
give them. A setting that would give the same tensors another meaning is refused by name, never dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from proactor.engine.checkpoint_writer import copy_tokenizer
from proactor.engine.config_keys import CheckpointError, read_json
from proactor.engine.files import atomic_folder, recover
from proactor.engine.lora import LoRABuffer, shapes
from proactor.engine.lora_config import ALL_TARGETS, LoRA, Target
from proactor.engine.lora_targets import TARGETS, adapted, low_rank, module_name
from proactor.engine.model_config import ModelConfig
from proactor.engine.peft_settings import in_peft_names, peft_settings, read_settings
from proactor.engine.shards import open_tensors
from proactor.engine.state import CHECKSUM, checksum
from proactor.engine.types import EngineError, one_line

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Pairs = dict[str, tuple[Tensor, Tensor]]


def write_peft(
    folder: str | Path,
    tensors: Mapping[str, tuple[Tensor, Tensor]],
    lora: LoRA,
    base_model: str | None = None,
    tokenizer_from: str | Path | None = None,
) -> None:
    """Write an adapter that PEFT loads.

    ``tensors``: {"model.layers.0.self_attn.q_proj": (A [r, K], B [N, r]), ...}, those that ``lora`` names.
    ``tokenizer_from``: a model folder whose tokenizer is copied. The metadata hold a checksum of tensors,
    ranks and scales. Atomic: an earlier save survives any failure. Other files in the folder stay. Raises
    CheckpointError when it cannot be written.
    """
    flat: dict[str, Tensor] = {}
    for name, (a, b) in tensors.items():
        pair = low_rank(lora, *_place(name))
        if pair is None:
            raise CheckpointError(f"{folder}: {name}: not among the targets of the adapter")
        if a.shape[0] != pair.rank or b.shape[1] != pair.rank:
            raise CheckpointError(
                f"{folder}: {name}: A {list(a.shape)} and B {list(b.shape)} are not of rank {pair.rank}"
            )
        # copies: the training buffer's views share memory, which safetensors refuses
        flat[f"{PREFIX}{name}.lora_A.weight"] = a.detach().cpu().clone(memory_format=torch.contiguous_format)
        flat[f"{PREFIX}{name}.lora_B.weight"] = b.detach().cpu().clone(memory_format=torch.contiguous_format)
    config = json.dumps(peft_settings(lora, base_model), indent=2) + "\n"
    try:
        with atomic_folder(folder, owned=(CONFIG, "adapter_model.*")) as temporary:
            (temporary / CONFIG).write_text(config, encoding="utf-8")
            if tokenizer_from is not None:
                copy_tokenizer(tokenizer_from, temporary)
            (temporary / TENSORS).write_bytes(_packed(flat, _checksum(flat, lora)))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written, an earlier save is untouched: {one_line(error)}"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], lora: LoRA) -> str:
    scale = math.sqrt(lora.rank) if lora.rslora else 1.0
    record: dict[str, Any] = {"rank": lora.rank, "alpha": lora.alpha * scale}
    patterns = {key: getattr(lora, key) for key in ("rank_pattern", "alpha_pattern") if getattr(lora, key)}
    return checksum(tensors, record | patterns)


def _packed(tensors: Mapping[str, Tensor], digest: str) -> bytes:
    """A safetensors file with the checksum in its metadata, in the same bytes each time: the library writes
    several keys in a random order.
    """
    data: bytes = save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = {"format": "pt", CHECKSUM: digest}
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8:end])}).encode()
    header += b" " * (-len(header) % 8)  # tensors lie at multiples of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def save_adapter(folder: str | Path, buffer: LoRABuffer, base_model: str | None) -> None:
    """`write_peft` of a training buffer."""
    write_peft(folder, buffer.tensors(), buffer.lora, base_model)


def load_adapter(folder: str | Path, buffer: LoRABuffer) -> None:
    """`read_peft` into a training buffer. Raises EngineError naming what does not fit it."""
    tensors, lora = read_peft(folder, buffer.config)
    for place, pair in adapted(lora, buffer.config.num_layers).items():
        mine = buffer.modules.get(place, pair)
        if pair.rank != mine.rank or not math.isclose(pair.scale, mine.scale, rel_tol=1e-6):
            raise EngineError(
                f"{folder}: {module_name(*place)} has rank {pair.rank} and scale {pair.scale:g}, this "
                f"engine's adapter has {mine.rank} and {mine.scale:g}"
            )
    try:
        buffer.load(tensors)
    except EngineError as error:
        raise EngineError(f"{folder}: {error}") from error


def has_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in PEFT's layout."""
    return (Path(folder) / CONFIG).is_file()


def read_lora(folder: str | Path) -> LoRA:
    """The settings of an adapter folder. CheckpointError when they cannot be read or are not supported."""
    return read_settings(Path(folder) / CONFIG)


def base_model_of(folder: str | Path) -> str | None:
    """The model that an adapter's settings name. CheckpointError when they cannot be read."""
    name = read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read_peft(folder: str | Path, config: ModelConfig | None = None) -> tuple[Pairs, LoRA]:
    """Read an adapter: ({"model.layers.0.self_attn.q_proj": (A, B), ...}, its settings).

    Tensors come as stored, on the CPU. With ``config``, shapes and layers are checked against the model, and
    that every linear has its adapter which the settings name. Raises CheckpointError, naming file and key or
    tensor, for anything that cannot be represented so (DoRA, saved modules, other adapter types), does not
    fit, or is not what `write_peft` wrote. PEFT writes no checksum, and what it wrote is taken as it is.
    """
    path = Path(folder)
    recover(path)
    lora = read_settings(path / CONFIG)
    stored, digest = _read_tensors(path / TENSORS)
    halves = _halves(path / TENSORS, stored)
    pairs: Pairs = {}
    for name, half in sorted(halves.items(), key=lambda item: _order(item[0])):
        if len(half) != 2:
            raise CheckpointError(f"{path / TENSORS}: {name}: lora_{'B' if 'A' in half else 'A'} is missing")
        pair = low_rank(lora, *_place(name))
        if pair is None:
            raise CheckpointError(f"{path / TENSORS}: {name}: not among the target_modules of {CONFIG}")
        _check_pair(f"{path / TENSORS}: {name}", name, half["A"], half["B"], pair.rank, config)
        pairs[name] = (half["A"], half["B"])
    if not pairs:
        raise CheckpointError(f"{path / TENSORS}: holds no adapter tensors")
    if digest is not None and digest != _checksum(stored, lora):
        raise CheckpointError(
            f"{path / TENSORS}: damaged, it or {CONFIG} is not what was saved (the checksum differs)"
        )
    if config is not None:
        _check_whole(path, pairs, lora, config)
    return pairs, lora


def _halves(path: Path, stored: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{module: {"A": …, "B": …}}, what there is of each."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = re.fullmatch(
            r"base_model\.model\.(model\.layers\.\d+\.(\w+\.\w+))\.lora_([AB])(?:\.default)?\.weight", key
        )
        if match is None or match[2] not in TARGETS:
            raise CheckpointError(
                f"{path}: {key}: not the low-rank half of a supported linear ({', '.join(TARGETS)})"
            )
        half = halves.setdefault(match[1], {})
        if match[3] in half:
            raise CheckpointError(f"{path}: {match[1]}: lora_{match[3]} is there twice")
        half[match[3]] = tensor
    return halves


def _check_whole(path: Path, pairs: Pairs, lora: LoRA, config: ModelConfig) -> None:
    try:
        wanted = adapted(lora, config.num_layers)
    except EngineError as error:
        raise CheckpointError(
            f"{path / CONFIG}: {in_peft_names(str(error).removeprefix('lora.'))}"
        ) from error
    for name in (module_name(*place) for place in wanted):
        if name not in pairs:
            raise CheckpointError(f"{path / TENSORS}: {name}: missing, though {CONFIG} names it")


def _place(name: str) -> tuple[int, Target]:
    """(layer, target) of ``model.layers.3.self_attn.q_proj``."""
    layer, module = name.split(".", 3)[2:]
    return int(layer), TARGETS[module]


def _order(name: str) -> tuple[int, int]:
    layer, target = _place(name)
    return layer, ALL_TARGETS.index(target)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """(tensors, checksum in the metadata, if any)."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file (only safetensors adapters are read)")
    try:
        with open_tensors(path) as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dictionary
            return tensors, (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: truncated or corrupted safetensors file: {one_line(error)}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or one_line(error)}") from error


def _check_pair(where: str, name: str, a: Tensor, b: Tensor, rank: int, config: ModelConfig | None) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"{where}: A {list(a.shape)} and B {list(b.shape)} are not of rank {rank}, which {CONFIG} gives"
        )
    for half, tensor in (("lora_A", a), ("lora_B", b)):
        if tensor.dtype not in FLOATS:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise CheckpointError(
                f"{where}: {half} is {str(tensor.dtype).removeprefix('torch.')}, only {names} are supported"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {half} holds values that are not finite")
    if config is None:
        return
    layer, target = _place(name)
    if layer >= config.num_layers:
        raise CheckpointError(f"{where}: the model has only {config.num_layers} layers")
    rows, columns = shapes(config)[target]
    if a.shape[1] != columns or b.shape[0] != rows:
        raise CheckpointError(
            f"{where}: A {list(a.shape)} and B {list(b.shape)} do not fit the model's linear [{rows}, "
            f"{columns}]"
        )
