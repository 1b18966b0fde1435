"""Loading: a folder or hub id becomes a decoder on a device, with its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from proactor.engine.chat import load_tokenizer
from proactor.engine.checkpoint import load_weights, resolve_model
from proactor.engine.config import EngineConfig, LoRA
from proactor.engine.lora import LoRABuffer
from proactor.engine.model import Decoder, Exactness
from proactor.engine.model_config import DTYPES, ModelConfig
from proactor.engine.types import EngineError
from proactor.kernels.linear import exact_linear, exact_minimum, fastest_cpu_linear, onednn_available
from proactor.kernels.op import on_gpu, use_triton


class Model(NamedTuple):
    """A model that is ready to run; ``tokenizer`` is None where the folder has none."""

    config: ModelConfig
    decoder: Decoder
    tokenizer: Any


def read_arguments(
    config: EngineConfig | None, lora: LoRA | None, seed: int, options: dict[str, Any]
) -> EngineConfig:
    """The config of `Engine.load`, given whole or as ``options``. Raises EngineError for a bad argument."""
    if config is not None and options:
        raise EngineError(f"Engine.load: a config and options ({', '.join(options)}): give one of them")
    for name, value, kind in (("config", config, EngineConfig), ("lora", lora, LoRA)):
        if not isinstance(value, kind | None):
            raise EngineError(f"Engine.load: {name} should be a {kind.__name__}, not {value!r:.60}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise EngineError(f"Engine.load: seed should be an integer, not {seed!r}")
    return config or EngineConfig.from_options(options)


def build(
    path: str | Path,
    options: EngineConfig,
    lora: LoRA | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a model; arguments as `Engine.load`. Raises EngineError for what cannot be loaded or run."""
    folder = resolve_model(path, options.revision)
    config = ModelConfig.from_folder(folder)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    deterministic = options.deterministic
    if deterministic and (device.type != "cpu" or dtype != torch.float32 or not onednn_available()):
        raise EngineError("deterministic=True needs a CPU, float32 and oneDNN for now")
    weights = load_weights(
        folder, config, quantization=options.quantization, dtype=dtype, device=device, progress=progress
    )
    buffer = LoRABuffer(config, lora, device, seed) if lora is not None else None
    fused = on_gpu(device) and use_triton(torch.empty(0, device=device))
    dense = options.resident == "dense" or (options.resident == "auto" and not fused)
    decoder = Decoder.build(config, weights, dtype, buffer, dense)
    if deterministic:
        min_rows = exact_minimum(exact_linear, decoder.linear_shapes(), dtype)
        decoder.form = Exactness(exact_linear, min_rows, exact=True)
    elif device.type == "cpu" and dtype == torch.float32 and not use_triton(decoder.embed):
        decoder.form = Exactness(fastest_cpu_linear())
    return Model(config, decoder, load_tokenizer(folder))


def choose_device(name: str) -> torch.device:
    """The device of `EngineConfig.device`; a GPU also becomes the current one, because kernels launch there.

    "auto" and "cuda" take this rank's GPU (``LOCAL_RANK``). Raises EngineError when there is no such GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        raise EngineError(f"device={name!r}: this machine has no CUDA device")
    if name in ("auto", "cuda"):
        name = f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    device = torch.device(name)
    if device.index >= gpus:
        raise EngineError(f"device={name!r}: this machine has {gpus} CUDA devices, numbered from 0")
    torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `EngineConfig.dtype`; "auto" is float32 on a CPU, bfloat16 on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return DTYPES[name]
