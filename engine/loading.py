"""From a folder or hub id to a decoder on a device, with its tokenizer: what `Engine.load` does before there
is an engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from proactor.engine.chat import load_tokenizer
from proactor.engine.checkpoint import load_weights, resolve_model
from proactor.engine.config import LoRA
from proactor.engine.lora import LoRABuffer
from proactor.engine.model import Decoder, Exactness
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError
from proactor.kernels.linear import exact_linear, exact_minimum, fastest_cpu_linear, onednn_available
from proactor.kernels.op import use_triton

Quantization = Literal["auto", "nf4", "none"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(NamedTuple):
    """A model that is ready to run; ``tokenizer`` is None where the folder has none."""

    config: ModelConfig
    decoder: Decoder
    tokenizer: Any


def build(
    path: str | Path,
    lora: LoRA | None,
    device: str,
    dtype: str | torch.dtype,
    quantization: Quantization,
    resident: str,
    deterministic: bool,
    seed: int,
    revision: str | None,
    progress: Callable[[int, int], None] | None,
) -> Model:
    """See `Engine.load`, whose arguments these are. Raises EngineError for what cannot be loaded or run
    so.
    """
    folder = resolve_model(path, revision)
    config = ModelConfig.from_folder(folder)
    place = _place(device)
    kind = _dtype(dtype, place)
    if deterministic and (place.type != "cpu" or kind != torch.float32 or not onednn_available()):
        raise EngineError("deterministic=True needs a CPU, float32 and oneDNN for now")
    weights = load_weights(
        folder, config, quantization=quantization, dtype=kind, device=place, progress=progress
    )
    buffer = LoRABuffer(config, lora, place, seed) if lora is not None else None
    if resident not in ("auto", "dense", "nf4"):
        raise EngineError(f"resident={resident!r}: use auto, dense or nf4")
    fused = place.type == "cuda" and use_triton(torch.empty(0, device=place))
    dense = resident == "dense" or (resident == "auto" and not fused)
    decoder = Decoder.build(config, weights, kind, buffer, dense)
    if deterministic:
        decoder.form = Exactness(
            exact_linear, exact_minimum(exact_linear, decoder.linear_shapes(), kind), exact=True
        )
    elif place.type == "cpu" and kind == torch.float32 and not use_triton(decoder.embed):
        decoder.form = Exactness(fastest_cpu_linear())
    return Model(config, decoder, load_tokenizer(folder))


def _place(device: str) -> torch.device:
    """The device named, "auto" the GPU of this rank where there is one; it becomes the current one, for
    kernels launch there.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    place = torch.device(name)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise EngineError(f"dtype={dtype!r}: use auto, float32, bfloat16 or float16")
    return DTYPES[dtype]
