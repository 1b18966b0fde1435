"""Tiny random models in Hugging Face's own formats, written by transformers, for tests that must read what
the real libraries write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5e5,
}


def tiny_config(family: str = "qwen2", **changes: Any) -> PreTrainedConfig:
    """A two-layer config with an odd vocabulary; `changes` override its keys.

    Row lengths are multiples of 64: bitsandbytes 0.50's AVX-512 dequantisation on a CPU takes wrong scales
    for others (such as 96).
    """
    values: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 101,
        "max_position_embeddings": 128,
    }
    if family == "mistral":
        values["sliding_window"] = None
    return FAMILIES[family][0](**{**values, **changes})


def tiny_model(
    family: str = "qwen2", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Any:
    """A transformers model with random weights; biases and norms too, so that ignoring one is seen."""
    torch.manual_seed(seed)
    model = FAMILIES[family][1](tiny_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name:
                parameter.mul_(3.0)
    return model.to(dtype).eval()


def save_tiny(
    folder: Path,
    family: str = "qwen2",
    dtype: torch.dtype = torch.float32,
    shard: str | None = None,
    **changes: Any,
) -> Any:
    """Save a `tiny_model` with transformers (in shards of at most `shard`, such as "40KB") and return it."""
    model = tiny_model(family, dtype=dtype, **changes)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return model


def save_tiny_4bit(
    folder: Path, family: str = "qwen2", dtype: torch.dtype = torch.bfloat16, **quantization: Any
) -> Any:
    """Quantise a `tiny_model` with bitsandbytes through transformers, save it, and return it."""
    plain = folder.with_name(folder.name + "-plain")
    save_tiny(plain, family, dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.pop("bnb_4bit_quant_type", "nf4"),
        bnb_4bit_use_double_quant=quantization.pop("double", True),
        bnb_4bit_compute_dtype=dtype,
        **quantization,
    )
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, device_map="cpu", dtype=dtype
    )
    model.save_pretrained(folder)
    return model
