"""Shapes of published models by name, so that memory can be planned before anything is downloaded."""

from __future__ import annotations

from typing import Any

from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError
from proactor.kernels.op import QWEN25, ModelShape

CONTEXT = 32768
FAMILY = {
    **{shape.name.rpartition("-")[2]: shape for shape in QWEN25},
    "1.5B": ModelShape("Qwen2.5-1.5B", 1536, 28, 12, 2, 128, 8960, 151936),
    "3B": ModelShape("Qwen2.5-3B", 2048, 36, 16, 2, 128, 11008, 151936),
    "32B": ModelShape("Qwen2.5-32B", 5120, 64, 40, 8, 128, 27648, 152064),
    "72B": ModelShape("Qwen2.5-72B", 8192, 80, 64, 8, 128, 29568, 152064),
}
"""Qwen2.5 by size."""
TIED = ("0.5B", "1.5B", "3B")
"""Sizes whose head is the embedding."""


def qwen2_keys(shape: ModelShape, **changes: Any) -> dict[str, Any]:
    """``config.json`` of a Qwen2.5 of this shape; ``changes`` override its keys."""
    return {
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        **changes,
    }


def qwen25(size: str) -> ModelConfig:
    """The config of a Qwen2.5 of this size, a key of `FAMILY`."""
    return ModelConfig.from_dict(qwen2_keys(FAMILY[size], tie_word_embeddings=size in TIED))


def known_model(name: str) -> ModelConfig:
    """The config of a model by name, as `known_keys` finds it."""
    return ModelConfig.from_dict(known_keys(name))


def known_keys(name: str) -> dict[str, Any]:
    """``config.json`` of a model by name, in any case and with any suffix: "Qwen/Qwen2.5-14B-Instruct".

    Raises EngineError for a name that is not known.
    """
    plain = name.rpartition("/")[2].lower()
    for size, shape in FAMILY.items():
        known = shape.name.lower()
        if plain == known or plain.startswith(f"{known}-"):
            return qwen2_keys(shape, tie_word_embeddings=size in TIED)
    names = ", ".join(shape.name for shape in FAMILY.values())
    raise EngineError(f"model {name!r}: neither a folder nor a known name ({names})")
