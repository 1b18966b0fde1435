"""Model folders for the checkpoint tests: how to load, compare and spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from proactor.engine.checkpoint import load_weights
from proactor.engine.model_config import ModelConfig
from proactor.kernels.nf4 import NF4Tensor

SKIPPED = ["lm_head", "model.layers.0.mlp.up_proj", "o_proj"]
FOUR_BIT: dict[str, dict[str, Any]] = {
    "nested": {},
    "single level": {"double": False},
    "skip modules": {"llm_int8_skip_modules": SKIPPED},
    "head too": {"llm_int8_skip_modules": ["model.layers.0.mlp.up_proj"]},
    "bf16 storage": {"bnb_4bit_quant_storage": torch.bfloat16},
}


def load(folder: Path, **options: Any) -> dict[str, Tensor | NF4Tensor]:
    return load_weights(folder, ModelConfig.from_folder(folder), **options)


def parameter_of(parameter: Any) -> Tensor:
    """What a transformers parameter stands for: dequantised by bitsandbytes where it is packed."""
    state = getattr(parameter, "quant_state", None)
    result: Tensor = parameter.data if state is None else bnb.dequantize_4bit(parameter.data, state)
    return result


def plain_tensor(weight: Tensor | NF4Tensor) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def assert_equals_model(weights: dict[str, Tensor | NF4Tensor], model: Any) -> None:
    parameters = dict(model.named_parameters())
    assert set(weights) == set(parameters)
    for name, weight in weights.items():
        ours = weight.dequantize() if isinstance(weight, NF4Tensor) else weight
        assert torch.equal(ours, parameter_of(parameters[name])), name


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a single-file folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
