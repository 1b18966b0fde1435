"""A model's shapes and switches, read from ``config.json`` and ``generation_config.json`` of its folder.

Nothing is guessed: a setting that would change the numbers and that the decoder does not implement is refused
by name, before any weight is read. Missing keys take the value that transformers gives them for the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from proactor.engine.config_keys import Keys, is_count, read_json
from proactor.engine.rope_config import RopeConfig, read_rope

Family = Literal["qwen2", "qwen3", "llama", "mistral"]

ARCHITECTURES: dict[str, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""`model_type` of the families that are covered, with the one architecture of each."""

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
# What transformers assumes when a key is absent, where the families differ.
DEFAULT_HEAD_DIM = {"qwen3": 128}
DEFAULT_EOS = {"llama": 2, "mistral": 2}
DEFAULT_BOS = {"llama": 1, "mistral": 1}
DEFAULT_KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}
DEFAULT_CONTEXT = {"qwen2": 32768, "qwen3": 32768, "llama": 2048, "mistral": 131072}
MOST_LAYERS = 4096
"""Layers of a model; the largest known ones have below 200."""
MOST_POSITIONS = 2**24
"""Length of a context; the rotary tables of a longer one would fill the memory."""
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and switches of one decoder. ``context_length`` includes yarn's or llama3's extension."""

    family: Family
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig
    eos_ids: tuple[int, ...]
    bos_id: int | None
    dtype: torch.dtype

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read ``config.json``, and ``generation_config.json`` where there is one.

        Raises CheckpointError, naming file and key, for anything missing, malformed or not implemented.
        """
        path = Path(folder) / "config.json"
        generation_path = Path(folder) / "generation_config.json"
        generation = read_json(generation_path) if generation_path.exists() else {}
        return cls.from_dict(read_json(path), generation, where=str(path))

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, where: str = "config"
    ) -> ModelConfig:
        """`from_folder` from the two files' contents; ``where`` opens the error messages."""
        keys = Keys(config, where)
        family = _family(keys)
        hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
        kv_heads = keys.count("num_key_value_heads", DEFAULT_KV_HEADS.get(family, heads), none=heads)
        head_dim = keys.count("head_dim", DEFAULT_HEAD_DIM.get(family, hidden // heads), none=hidden // heads)
        if heads % kv_heads:
            raise keys.error(
                "num_key_value_heads", f"{kv_heads} does not divide num_attention_heads ({heads})"
            )
        if head_dim % 2:
            raise keys.error("head_dim", f"{head_dim} is odd: rotary embeddings turn pairs of dimensions")
        layers = keys.count("num_hidden_layers", most=MOST_LAYERS)
        positions = keys.count("max_position_embeddings", DEFAULT_CONTEXT[family], most=MOST_POSITIONS)
        rope = read_rope(keys, positions)
        context = (
            max(positions, int(rope.factor * rope.original_context)) if rope.kind == "yarn" else positions
        )
        if context > MOST_POSITIONS:
            raise keys.error("rope_scaling", f"a context of {context}, at most {MOST_POSITIONS} is supported")
        _refuse_unimplemented(keys, family, layers, context)
        bias = keys.flag("attention_bias")
        return cls(
            family=family,
            hidden_size=hidden,
            intermediate_size=keys.count("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=keys.count("vocab_size"),
            context_length=context,
            rms_eps=keys.number("rms_norm_eps", 1e-6),
            tie_embeddings=keys.flag("tie_word_embeddings"),
            qkv_bias=family == "qwen2" or (bias and family != "mistral"),
            o_bias=bias and family in ("llama", "qwen3"),
            mlp_bias=family == "llama" and keys.flag("mlp_bias"),
            qk_norm=family == "qwen3",
            rope=rope,
            eos_ids=_eos_ids(keys, generation or {}, family),
            bos_id=keys.token("bos_token_id", DEFAULT_BOS.get(family)),
            dtype=_dtype(keys),
        )


def _family(keys: Keys) -> Family:
    model_type = keys.values.get("model_type")
    architectures = keys.values.get("architectures") or []
    experts = [key for key in EXPERT_KEYS if keys.values.get(key)]
    if experts or (isinstance(model_type, str) and ("moe" in model_type or model_type == "mixtral")):
        what = f"{model_type!r} is a mixture of experts"
        raise keys.error("model_type", f"{what} ({', '.join(experts) or 'by its name'}): not supported")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise keys.error(
            "model_type", f"{model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if architectures and architectures != [ARCHITECTURES[model_type]]:
        raise keys.error(
            "architectures", f"{architectures!r} is not supported; supported: {ARCHITECTURES[model_type]}"
        )
    return cast(Family, model_type)


def _refuse_unimplemented(keys: Keys, family: Family, layers: int, context: int) -> None:
    act = keys.values.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise keys.error("hidden_act", f"{act!r} is not supported, only silu")
    for key in (
        "attention_sinks",
        "use_attention_sinks",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ):
        if keys.values.get(key):
            raise keys.error(key, "not supported")
    windowed = _sliding_layers(keys, family, layers)
    # Mistral's window is 4096 when the key is absent, and off when it is null. [CODE] transformers
    window = keys.values.get("sliding_window", 4096)
    if windowed and window is not None and window < context:
        raise keys.error(
            "sliding_window", f"{windowed} layers see only {window} tokens of {context}: not supported"
        )


def _sliding_layers(keys: Keys, family: Family, layers: int) -> int:
    """How many layers attend through a sliding window."""
    if family == "llama":
        return 0
    if family == "mistral":
        return layers
    if not keys.flag("use_sliding_window"):
        return 0
    types = keys.values.get("layer_types")
    if isinstance(types, list):
        return types.count("sliding_attention")
    return max(0, layers - keys.count("max_window_layers", 28, least=0))


def _eos_ids(keys: Keys, generation: Mapping[str, Any], family: Family) -> tuple[int, ...]:
    """Ids that end a completion, of the config and of the generation config, ascending."""
    ids: set[int] = set()
    for value in (keys.values.get("eos_token_id", DEFAULT_EOS.get(family)), generation.get("eos_token_id")):
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if not is_count(item):
                raise keys.error("eos_token_id", f"should be token ids, not {value!r}")
            ids.add(item)
    return tuple(sorted(ids))


def _dtype(keys: Keys) -> torch.dtype:
    value = keys.values.get("dtype", keys.values.get("torch_dtype")) or "float32"
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise keys.error("dtype", f"{value!r} is not supported; supported: {', '.join(DTYPES)}")
    return DTYPES[name]
