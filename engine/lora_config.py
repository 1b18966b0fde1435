"""The configuration of adapters: on which linears they are, with which rank and scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from proactor.engine.frozen import Config

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
ALL_TARGETS: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")
LEAVES: dict[str, str] = {target: f"{target}_proj" for target in ALL_TARGETS}
"""The linears by their last names in Hugging Face's models."""
SHORT = {leaf: target for target, leaf in LEAVES.items()}
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "bias",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings of PEFT's that make an adapter something else."""


class LoRA(Config):
    """Low-rank adapters (arXiv 2106.09685); the defaults are ProActor's reported settings [NOTES]."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] | str = Field(
        ALL_TARGETS,
        description="linears with an adapter: all-linear, a list of names (q, q_proj, or as much of the end "
        "of a module's name as is needed: 3.self_attn.q_proj), or one regular expression for the whole name "
        "(model.layers.3.self_attn.q_proj), as PEFT's target_modules",
    )
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="layers, from 0, that a list of targets is meant for; None: all"
    )
    exclude_modules: tuple[str, ...] | str = Field(
        (), description="linears without an adapter although they are targets; written like targets"
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="{regular expression of the end of a module's name: another rank}; the first counts"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="{regular expression of the end of a module's name: another alpha}"
    )
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        """`scale_of` the common rank and alpha."""
        return self.scale_of(self.rank, self.alpha)

    def scale_of(self, rank: int, alpha: float) -> float:
        """Factor of the low-rank product: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        return alpha / (rank**0.5 if self.rslora else rank)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, values: Any) -> Any:
        for key in UNSUPPORTED if isinstance(values, Mapping) else ():
            if key in values:
                raise ValueError(f"{key} is not supported: an adapter is a low-rank pair a linear, no more")
        return values

    @field_validator("targets", "exclude_modules", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """Names in one form: the seven linears first, in the model's order, by their short names."""
        if value == "all-linear":
            return ALL_TARGETS
        listed = isinstance(value, list | tuple | set | frozenset)
        if not (listed and all(isinstance(name, str) for name in value)):  # type: ignore[attr-defined]
            return value
        names = {SHORT.get(_without_block(name), name) for name in value}  # type: ignore[attr-defined]
        rest = sorted(names - set(ALL_TARGETS))
        return (*(target for target in ALL_TARGETS if target in names), *rest)

    @field_validator("targets", "exclude_modules")
    @classmethod
    def _of_linears(cls, value: tuple[str, ...] | str, info: ValidationInfo) -> tuple[str, ...] | str:
        if isinstance(value, str):
            _check_regular(value)
        elif not value and info.field_name == "targets":
            raise ValueError("at least one target is needed")
        else:
            for name in value:
                if name not in LEAVES and name.rpartition(".")[2] not in LEAVES.values():
                    known = ", ".join(LEAVES.values())
                    raise ValueError(f"{name!r} is none of the linears that take an adapter ({known})")
        return value

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        alone = isinstance(value, int) and not isinstance(value, bool)
        return (value,) if alone else value or None

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _patterns(cls, value: object) -> object:
        """Refuse what pydantic would take for a number, and name the linears as modules do."""
        if not isinstance(value, Mapping):
            return {} if value is None else value
        for key, number in value.items():
            if isinstance(number, bool):
                raise ValueError(f"{key}: should be a number, not {number!r}")
            _check_regular(str(key))
        return {LEAVES.get(key, key): number for key, number in value.items()}

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "dropout above 0 would depend on the sequence as a whole, which a token tree cannot share; "
                "use 0"
            )
        return value

    @model_validator(mode="after")
    def _layers_of_names(self) -> LoRA:
        if isinstance(self.targets, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform goes with a list of targets; name layers in the expression")
        return self


def _without_block(name: str) -> str:
    """``self_attn.q_proj`` as ``q_proj``."""
    block, dot, leaf = name.rpartition(".")
    return leaf if dot and block in ("self_attn", "mlp") else name


def _check_regular(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
