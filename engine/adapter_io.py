"""LoRA adapters in PEFT's layout: ``adapter_config.json`` beside ``adapter_model.safetensors``.

Supported is one plain low-rank pair a linear, with one rank and one scale for all. A PEFT setting that would
give the same tensors another meaning is refused by name, never dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from proactor.engine.config import LoRA, Target
from proactor.engine.config_keys import LARGEST_INTEGER, LARGEST_NUMBER, CheckpointError, is_count, read_json
from proactor.engine.files import atomic_folder, recover
from proactor.engine.lora import MODULE, LoRABuffer, shapes
from proactor.engine.model_config import ModelConfig
from proactor.engine.shards import open_tensors
from proactor.engine.state import CHECKSUM, checksum
from proactor.engine.types import EngineError, one_line

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
TARGETS: dict[str, Target] = {module: target for target, module in MODULE.items()}
LEAF: dict[str, str] = {target: module.rpartition(".")[2] for target, module in MODULE.items()}

# Settings that tell how an adapter was made or where it applies, but do not change what its tensors mean.
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# Initialisations that change the base weights: their tensors fit only that changed base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Pairs = dict[str, tuple[Tensor, Tensor]]


def write_peft(
    folder: str | Path,
    tensors: Mapping[str, tuple[Tensor, Tensor]],
    rank: int,
    alpha: float,
    targets: Sequence[str],
    base_model: str | None = None,
) -> None:
    """Write an adapter that PEFT loads.

    ``tensors``: {"model.layers.0.self_attn.q_proj": (A [rank, K], B [N, rank]), ...}; the adapter adds
    (alpha / rank) B A x. ``targets`` are "q", "gate", ... or module names. The metadata hold a checksum of
    tensors, rank and alpha. Atomic: an earlier save survives any failure. Other files in the folder stay.
    Raises CheckpointError when it cannot be written.
    """
    leaves = sorted({LEAF.get(target, target) for target in targets})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": leaves,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    flat: dict[str, Tensor] = {}
    for name, (a, b) in tensors.items():
        if a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(
                f"{folder}: {name}: A {list(a.shape)} and B {list(b.shape)} are not of rank {rank}"
            )
        # copies: the training buffer's views share memory, which safetensors refuses
        flat[f"{PREFIX}{name}.lora_A.weight"] = a.detach().cpu().clone(memory_format=torch.contiguous_format)
        flat[f"{PREFIX}{name}.lora_B.weight"] = b.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        with atomic_folder(folder, owned=(CONFIG, "adapter_model.*")) as temporary:
            (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (temporary / TENSORS).write_bytes(_packed(flat, _checksum(flat, rank, alpha)))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written, an earlier save is untouched: {one_line(error)}"
        ) from error


def _checksum(tensors: Mapping[str, Tensor], rank: int, alpha: float) -> str:
    return checksum(tensors, {"rank": rank, "alpha": float(alpha)})


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
    lora = buffer.lora
    write_peft(folder, buffer.tensors(), lora.rank, lora.scale * lora.rank, lora.targets, base_model)


def load_adapter(folder: str | Path, buffer: LoRABuffer) -> None:
    """`read_peft` into a training buffer. Raises EngineError naming what does not fit it."""
    tensors, rank, alpha, _ = read_peft(folder)
    scale, lora = alpha / rank, buffer.lora
    if rank != lora.rank or not math.isclose(scale, lora.scale, rel_tol=1e-6):
        raise EngineError(
            f"{folder}: rank {rank} and scale {scale:g}, this engine's adapter has {lora.rank} and "
            f"{lora.scale:g}"
        )
    try:
        buffer.load(tensors)
    except EngineError as error:
        raise EngineError(f"{folder}: {error}") from error


def has_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in PEFT's layout."""
    return (Path(folder) / CONFIG).is_file()


def read_lora(folder: str | Path) -> LoRA:
    """Rank and scale of an adapter folder, for all targets. CheckpointError when they cannot be read."""
    file = Path(folder) / CONFIG
    rank, alpha = _read_config(file)
    if alpha <= 0:
        raise CheckpointError(f"{file}: lora_alpha: {alpha:g} is not above 0")
    return LoRA(rank=rank, alpha=alpha)


def read_peft(
    folder: str | Path, config: ModelConfig | None = None
) -> tuple[Pairs, int, float, tuple[Target, ...]]:
    """Read an adapter: ({"model.layers.0.self_attn.q_proj": (A, B), ...}, rank, alpha, targets).

    Tensors come as stored, on the CPU. The scale is alpha / rank whatever PEFT's convention was: a
    rank-stabilised adapter comes back with alpha * sqrt(rank). With ``config``, layers and shapes are checked
    against the model. Raises CheckpointError, naming file and key or tensor, for anything that cannot be
    represented so (DoRA, per-module ranks, saved modules, other adapter types), does not fit, or is not what
    `write_peft` wrote. PEFT writes no checksum, and what it wrote is taken as it is.
    """
    path = Path(folder)
    recover(path)
    rank, alpha = _read_config(path / CONFIG)
    named = read_json(path / CONFIG).get("target_modules")
    stored, digest = _read_tensors(path / TENSORS)
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = re.fullmatch(
            r"base_model\.model\.(model\.layers\.\d+\.(\w+\.\w+))\.lora_([AB])(?:\.default)?\.weight", key
        )
        if match is None or match[2] not in TARGETS:
            raise CheckpointError(
                f"{path / TENSORS}: {key}: not the low-rank half of a supported linear ({', '.join(TARGETS)})"
            )
        half = halves.setdefault(match[1], {})
        if match[3] in half:
            raise CheckpointError(f"{path / TENSORS}: {match[1]}: lora_{match[3]} is there twice")
        half[match[3]] = tensor
    pairs: Pairs = {}
    for name, half in sorted(halves.items(), key=lambda item: _order(item[0])):
        if len(half) != 2:
            raise CheckpointError(f"{path / TENSORS}: {name}: lora_{'B' if 'A' in half else 'A'} is missing")
        _check_pair(f"{path / TENSORS}: {name}", name, half["A"], half["B"], rank, config)
        if isinstance(named, list) and not any(f".{name}".endswith(f".{target}") for target in named):
            raise CheckpointError(
                f"{path / TENSORS}: {name}: not among the target_modules of {CONFIG}, "
                f"{', '.join(map(str, named))}"
            )
        pairs[name] = (half["A"], half["B"])
    if not pairs:
        raise CheckpointError(f"{path / TENSORS}: holds no adapter tensors")
    if digest is not None and digest != _checksum(stored, rank, alpha):
        raise CheckpointError(
            f"{path / TENSORS}: damaged, it or {CONFIG} is not what was saved (the checksum differs)"
        )
    present = {TARGETS[name.split(".", 3)[3]] for name in pairs}
    return pairs, rank, alpha, tuple(target for target in MODULE if target in present)


def _order(name: str) -> tuple[int, int]:
    layer, module = name.split(".", 3)[2:]
    return int(layer), list(TARGETS).index(module)


def _read_config(path: Path) -> tuple[int, float]:
    """Rank and effective alpha. Checks every setting."""
    values = read_json(path)

    def refuse(key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{path}: {key}: {what}")

    if values.get("peft_type") != "LORA":
        raise refuse("peft_type", f"{values.get('peft_type')!r} is not supported, only LORA")
    for key, value in values.items():
        if key not in HARMLESS and value:
            raise refuse(key, f"{value!r} is not supported")
    if values.get("bias", "none") != "none":
        raise refuse("bias", f"{values['bias']!r} is not supported, only 'none'")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise refuse(
            "init_lora_weights",
            f"{start!r} changes the base weights; convert it to a plain LoRA in PEFT first",
        )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not is_count(rank) or rank == 0:
        raise refuse("r", f"should be a positive integer up to {LARGEST_INTEGER}, not {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST_NUMBER:
        raise refuse("lora_alpha", f"should be a number up to {LARGEST_NUMBER:g}, not {alpha!r}")
    return rank, float(alpha) * (math.sqrt(rank) if values.get("use_rslora") else 1.0)


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
    layer, module = name.split(".", 3)[2:]
    if int(layer) >= config.num_layers:
        raise CheckpointError(f"{where}: the model has only {config.num_layers} layers")
    rows, columns = shapes(config)[TARGETS[module]]
    if a.shape[1] != columns or b.shape[0] != rows:
        raise CheckpointError(
            f"{where}: A {list(a.shape)} and B {list(b.shape)} do not fit the model's linear [{rows}, "
            f"{columns}]"
        )
