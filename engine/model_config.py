"""A model's shapes and switches, read from ``config.json`` and ``generation_config.json`` of its folder.

Nothing is guessed: a setting that would change the numbers and that the decoder does not implement is refused
by name, before any weight is read. Missing keys take the value that transformers gives them for the family.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from proactor.engine.types import EngineError

Family = Literal["qwen2", "qwen3", "llama", "mistral"]
RopeKind = Literal["default", "linear", "yarn", "llama3"]

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
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class CheckpointError(EngineError):
    """A model or adapter folder that cannot be read or written; names the file and the key or tensor."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. ``factor`` and the fields after it are read only by the kinds that use them.

    [CODE] transformers `modeling_rope_utils`; [PAPER] yarn: arXiv 2309.00071.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    """Scale of cos and sin (yarn only): 0.1 ln(factor) + 1 unless the checkpoint gives its own."""

    def inv_freq(self, head_dim: int) -> Tensor:
        """Radians a position for each pair of dimensions: f32 [head_dim / 2], bit-equal to transformers."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
        plain = 1.0 / (self.theta**exponent)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            return self._yarn(head_dim, self.theta**exponent)
        if self.kind == "llama3":
            return self._llama3(plain)
        return plain

    def _yarn(self, head_dim: int, periods: Tensor) -> Tensor:
        """Interpolated slow dimensions, extrapolated fast ones, and a linear ramp between those that turn
        `beta_slow` and `beta_fast` times in the original context.
        """

        def dimension(turns: float) -> float:
            return (head_dim * math.log(self.original_context / (turns * 2 * math.pi))) / (
                2 * math.log(self.theta)
            )

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
        keep = 1 - ramp
        return 1.0 / (self.factor * periods) * (1 - keep) + 1.0 / periods * keep

    def _llama3(self, plain: Tensor) -> Tensor:
        """Long wavelengths divided by the factor, short ones kept, a smooth blend between."""
        wavelength = 2 * math.pi / plain
        longest, shortest = (
            self.original_context / self.low_freq_factor,
            self.original_context / self.high_freq_factor,
        )
        scaled = torch.where(wavelength > longest, plain / self.factor, plain)
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = (self.original_context / wavelength - low) / (high - low)
        blend = (1 - smooth) * scaled / self.factor + smooth * scaled
        between = ~(wavelength < shortest) * ~(wavelength > longest)
        return torch.where(between, blend, scaled)


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
        keys = _Keys(config, where)
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
        layers = keys.count("num_hidden_layers")
        positions = keys.count("max_position_embeddings", DEFAULT_CONTEXT[family])
        rope = _rope(keys, positions)
        context = (
            max(positions, int(rope.factor * rope.original_context)) if rope.kind == "yarn" else positions
        )
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


class _Keys:
    """Typed look-ups in one dictionary; every error names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, key: str, what: str) -> CheckpointError:
        """A CheckpointError about one key."""
        return CheckpointError(f"{self.where}: {key}: {what}")

    def count(self, key: str, default: int | None = None, none: int | None = None, least: int = 1) -> int:
        """An integer >= ``least``; ``default`` stands for an absent key, ``none`` for an explicit null."""
        value = self.values.get(key, default)
        value = none if value is None else value
        if value is None:
            raise self.error(key, "missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"should be an integer of at least {least}, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number; ``default`` stands for an absent key or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "missing")
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value <= 0
        ):
            raise self.error(key, f"should be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; ``default`` stands for an absent key or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, f"should be true or false, not {value!r}")
        return value

    def token(self, key: str, default: int | None = None) -> int | None:
        """A token id or None."""
        value = self.values.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.error(key, f"should be a token id, not {value!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty for an absent key or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"should be an object, not {value!r}")
        return dict(value or {})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises CheckpointError when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: should hold a JSON object, not {type(value).__name__}")
    return value


def _family(keys: _Keys) -> Family:
    model_type = keys.values.get("model_type")
    architectures = keys.values.get("architectures") or []
    experts = [key for key in EXPERT_KEYS if keys.values.get(key)]
    if experts or (isinstance(model_type, str) and ("moe" in model_type or model_type == "mixtral")):
        what = f"{model_type!r} is a mixture of experts"
        raise keys.error("model_type", f"{what} ({', '.join(experts) or 'by its name'}): not supported")
    if model_type not in ARCHITECTURES:
        raise keys.error(
            "model_type", f"{model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if architectures and architectures != [ARCHITECTURES[model_type]]:
        raise keys.error(
            "architectures", f"{architectures!r} is not supported; supported: {ARCHITECTURES[model_type]}"
        )
    return cast(Family, model_type)


def _rope(keys: _Keys, positions: int) -> RopeConfig:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and transformers 5's ``rope_parameters``.

    Where both are given, ``rope_scaling`` replaces the other whole, as in transformers. A base that only
    ``rope_parameters`` holds would be lost: refused.
    """
    name = "rope_scaling" if keys.values.get("rope_scaling") else "rope_parameters"
    values = keys.mapping(name)
    if name == "rope_scaling" and not ("rope_theta" in values or keys.values.get("rope_theta")):
        hidden = _rope_thetas(keys.mapping("rope_parameters"))
        if hidden - {10000.0}:
            raise keys.error(
                "rope_scaling", f"has no rope_theta, and hides that of rope_parameters ({max(hidden):g})"
            )
    if "full_attention" in values:
        values = _Keys(values, keys.where).mapping("full_attention")
    rope = _Keys(values, f"{keys.where}: {name}")
    theta = rope.number("rope_theta", keys.number("rope_theta", 10000.0))
    kind = values.get("rope_type", values.get("type")) or "default"
    partial = values.get("partial_rotary_factor", keys.values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise rope.error("partial_rotary_factor", f"{partial!r} is not supported, only 1")
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", rope.number("factor"))
    original = keys.values.get("original_max_position_embeddings")
    original = rope.count("original_max_position_embeddings", positions) if original is None else original
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            rope.number("factor"),
            original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    if kind == "yarn":
        factor = rope.number("factor", positions / original)
        return RopeConfig(
            theta,
            "yarn",
            factor,
            original,
            beta_fast=values.get("beta_fast") or 32.0,
            beta_slow=values.get("beta_slow") or 1.0,
            truncate=rope.flag("truncate", True),
            attention_factor=_yarn_attention(rope, factor),
        )
    raise rope.error("rope_type", f"{kind!r} is not supported; supported: default, linear, yarn, llama3")


def _rope_thetas(parameters: Mapping[str, Any]) -> set[float]:
    """Every base in `rope_parameters`, whether flat or by layer type."""
    parts = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {float(part["rope_theta"]) for part in parts if isinstance(part.get("rope_theta"), int | float)}


def _yarn_attention(rope: _Keys, factor: float) -> float:
    """0.1 ln(factor) + 1, or with ``mscale`` and ``mscale_all_dim`` a ratio of two. [CODE] transformers."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor")

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return scale(rope.number("mscale")) / scale(rope.number("mscale_all_dim"))
    return scale(1.0)


def _refuse_unimplemented(keys: _Keys, family: Family, layers: int, context: int) -> None:
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


def _sliding_layers(keys: _Keys, family: Family, layers: int) -> int:
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


def _eos_ids(keys: _Keys, generation: Mapping[str, Any], family: Family) -> tuple[int, ...]:
    """Ids that end a completion, of the config and of the generation config, ascending."""
    ids: set[int] = set()
    for value in (keys.values.get("eos_token_id", DEFAULT_EOS.get(family)), generation.get("eos_token_id")):
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if isinstance(item, bool) or not isinstance(item, int):
                raise keys.error("eos_token_id", f"should be token ids, not {value!r}")
            ids.add(item)
    return tuple(sorted(ids))


def _dtype(keys: _Keys) -> torch.dtype:
    value = keys.values.get("dtype", keys.values.get("torch_dtype")) or "float32"
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise keys.error("dtype", f"{value!r} is not supported; supported: {', '.join(DTYPES)}")
    return DTYPES[name]
