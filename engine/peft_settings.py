"""PEFT's ``adapter_config.json`` and `LoRA`, each from the other; what else it sets is refused by key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proactor.engine.config_keys import LARGEST_INTEGER, LARGEST_NUMBER, CheckpointError, is_count, read_json
from proactor.engine.frozen import describe
from proactor.engine.lora_config import LEAVES, LoRA

SETTINGS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "layers_to_transform": "layers_to_transform",
    "exclude_modules": "exclude_modules",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "rslora",
}
"""PEFT's names of the fields of `LoRA`."""
# Settings that tell how an adapter was made, but do not change what its tensors mean.
HARMLESS = frozenset(
    {
        *SETTINGS,
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
# Initialisations that change the base weights: their tensors fit only that changed base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def peft_settings(lora: LoRA, base_model: str | None) -> dict[str, Any]:
    """The settings of an adapter, as PEFT reads them."""

    def names(value: tuple[str, ...] | str) -> list[str] | str:
        return value if isinstance(value, str) else sorted(LEAVES.get(name, name) for name in value)

    layers = lora.layers_to_transform
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": names(lora.targets),
        "exclude_modules": names(lora.exclude_modules) or None,
        "layers_to_transform": None if layers is None else list(layers),
        "rank_pattern": lora.rank_pattern,
        "alpha_pattern": lora.alpha_pattern,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": lora.rslora,
    }


def in_peft_names(message: str) -> str:
    """A message that begins with a field of `LoRA`, with PEFT's name for it."""
    names = {ours: theirs for theirs, ours in SETTINGS.items()}
    field, rest = re.match(r"(\w*)(.*)", message, re.DOTALL).groups()  # type: ignore[union-attr]
    return names.get(field, field) + rest


def read_settings(path: Path) -> LoRA:
    """The settings in an ``adapter_config.json``.

    Raises CheckpointError, naming file and key, for any that is not supported or cannot be.
    """
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
    if (pattern := values.get("layers_pattern")) not in (None, "", "layers", [], ["layers"]):
        raise refuse("layers_pattern", f"{pattern!r} is not supported, only 'layers'")
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
    if alpha <= 0:
        raise refuse("lora_alpha", f"{alpha:g} is not above 0")
    given = {ours: values[theirs] for theirs, ours in SETTINGS.items() if values.get(theirs) is not None}
    try:
        return LoRA.model_validate(given)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {in_peft_names(describe(error, LoRA))}") from None
