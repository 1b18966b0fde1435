"""Loading: a folder or hub id becomes a decoder on a device, with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from proactor.engine.adapter_names import named_adapters
from proactor.engine.arguments import instance, integer, path_of, short
from proactor.engine.bnb4bit import is_4bit
from proactor.engine.checkpoint import load_weights, resolve_model
from proactor.engine.config import EngineConfig
from proactor.engine.config_keys import read_json
from proactor.engine.device import check_kernels, choose_device, choose_dtype
from proactor.engine.footprint import Footprint
from proactor.engine.lora import LoRABuffer
from proactor.engine.lora_config import LoRA
from proactor.engine.memory import (
    Budgets,
    Memory,
    Planner,
    device_memory,
    fits_host,
    naming_shortage,
)
from proactor.engine.model import Decoder, Exactness
from proactor.engine.model_config import ModelConfig
from proactor.engine.tokenizer import load_tokenizer
from proactor.engine.types import EngineError
from proactor.kernels.linear import exact_linear, exact_minimum, fastest_cpu_linear, onednn_available
from proactor.kernels.op import on_gpu, use_triton


class Model(NamedTuple):
    """A model that is ready to run.

    ``tokenizer`` is None where the folder has none, ``budgets`` where nothing is known of the memory.
    ``adapters``: by name, the first that of the decoder; None: that one alone, if any.
    """

    config: ModelConfig
    decoder: Decoder
    tokenizer: Any
    budgets: Budgets | None = None
    adapters: Mapping[str, LoRABuffer] | None = None


def read_arguments(
    path: str | Path,
    config: EngineConfig | None,
    lora: LoRA | Mapping[str, LoRA] | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
    options: dict[str, Any],
) -> EngineConfig:
    """The config of `Engine.load`, given whole or as ``options``. Raises EngineError for a bad argument."""
    if config is not None and options:
        raise EngineError(f"Engine.load: a config and options ({', '.join(options)}): give one of them")
    path_of(path, "Engine.load", "a folder or hub id")
    if config is not None:
        instance(config, EngineConfig, "Engine.load: config")
    named_adapters(lora, "Engine.load: lora")
    integer(seed, "Engine.load: seed")
    if progress is not None and not callable(progress):
        raise EngineError(f"Engine.load: progress should be a function (done, total), not {short(progress)}")
    return config or EngineConfig.from_options(options)


def build(
    path: str | Path,
    options: EngineConfig,
    lora: LoRA | Mapping[str, LoRA] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a model; arguments as `Engine.load`. Raises EngineError for what cannot be loaded or run."""
    loras = named_adapters(lora)
    folder = resolve_model(path, options.revision)
    config = ModelConfig.from_folder(folder)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    check_kernels(device)
    deterministic = options.deterministic
    if deterministic and (device.type != "cpu" or not onednn_available(dtype)):
        raise EngineError(
            "deterministic=True needs a CPU whose oneDNN takes the dtype, float32 or bfloat16: not "
            f"{str(dtype).removeprefix('torch.')} on this {device.type}"
        )
    fused = on_gpu(device) and use_triton(torch.empty(0, device=device))
    stored_4bit = _is_4bit(folder, options)
    dense = options.resident == "dense" or (options.resident == "auto" and not fused)
    if device.type == "cpu" and stored_4bit and not fused:
        dense = fits_host(config, [*loras.values()], dtype, options.resident, Path(path).name)
    planner = Planner(
        Footprint.of(config, loras.values(), not dense and stored_4bit, dtype),
        options,
        config.context_length,
        f"{Path(path).name} on {device}",
    )
    before = device_memory(device)
    if before is not None:
        planner.plan(before)  # refuses what cannot fit, before anything is read
    with naming_shortage(device, f"{path}", "free its memory, or set device to another GPU"):
        weights = load_weights(
            folder, config, quantization=options.quantization, dtype=dtype, device=device, progress=progress
        )
        adapters = {name: LoRABuffer(config, pairs, device, seed) for name, pairs in loras.items()}
        first = next(iter(adapters.values()), None)
        decoder = Decoder.build(config, weights, dtype, first, dense, deterministic)
    if deterministic:
        wearing = [decoder, *map(decoder.wearing, adapters.values())]
        products = set[tuple[int, int]]().union(*(each.linear_shapes() for each in wearing))
        min_rows = exact_minimum(exact_linear, products, dtype)
        decoder.form = Exactness(exact_linear, min_rows, exact=True)
    elif device.type == "cpu" and not use_triton(decoder.embed):
        decoder.form = Exactness(fastest_cpu_linear())
    return Model(config, decoder, load_tokenizer(folder), _budgets(planner, device), adapters)


def _is_4bit(folder: Path, options: EngineConfig) -> bool:
    """Whether the linears are read or made as NF4."""
    path = folder / "config.json"
    stored = is_4bit(read_json(path), str(path))
    return options.quantization == "nf4" or (stored and options.quantization == "auto")


def _budgets(planner: Planner, device: torch.device) -> Budgets:
    """Budgets beside the model that was just loaded; the optimizer is still to come."""
    now = device_memory(device)
    if now is None:
        return Budgets.fixed(planner.options)
    loaded = planner.footprint.weights + planner.footprint.adapter
    return planner.plan(Memory(now.free + loaded, now.total))
