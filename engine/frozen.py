"""Frozen configurations: unknown keys and impossible values are refused by name, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from proactor.engine.types import EngineError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # its public name

OTHER_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "lora_dropout": "dropout",
    "max_new_tokens": "max_tokens",
    "max_completion_length": "max_tokens",
    "num_generations": "n",
    "num_return_sequences": "n",
    "stop_token_ids": "stop_ids",
    "stop_strings": "stop",
    "logits_processor": "logit_mask",
    "structured_outputs": "constraint",
    "guided_json": "constraint",
    "learning_rate": "lr",
    "max_grad_norm": "max_norm",
    "warmup_steps": "warmup",
    "max_steps": "total",
    "lr_scheduler_type": "decay",
    "clip_range": "epsilon",
    "kl_coef": "beta",
    "num_iterations": "epochs",
    "load_in_4bit": "quantization",
    "torch_dtype": "dtype",
    "max_num_seqs": "max_batch",
}
"""What PEFT, transformers, vLLM and TRL call these options, for "did you mean"."""
WORDS = {"tuple_type": "should be a list"}
"""Plainer messages for pydantic's kinds of errors."""


class ConfigType(ModelMetaclass):
    """Makes a direct call (``Sampling(n=0)``) raise EngineError in one line.

    Nested sections are validated without such a call, so that pydantic's own error keeps their place.
    """

    def __call__(cls, *args: Any, **values: Any) -> Any:
        """The configuration of these values. Raises EngineError naming the first that is impossible."""
        if args:
            first = next(iter(cast(type[BaseModel], cls).model_fields), "option")
            raise EngineError(
                f"{cls.__name__}: options go by name, {cls.__name__}({first}=…), not {args[0]!r:.60}"
            )
        try:
            return super().__call__(**values)
        except ValidationError as error:
            raise EngineError(f"{cls.__name__}: {describe(error, cast(type[BaseModel], cls))}") from None


class Config(BaseModel, metaclass=ConfigType):
    """Base of every configuration: immutable; unknown keys and numbers that are bool, NaN or infinite are
    refused by name.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

    def __setattr__(self, name: str, value: object) -> None:
        """Refused: a configuration does not change."""
        raise EngineError(f"{type(self).__name__}.{name} cannot be set: make another one with {name}=…")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic would take True for 1."""
        kinds = _leaf_types(cls.model_fields[str(info.field_name)].annotation)
        values = value if isinstance(value, list | tuple) else [value]
        if bool not in kinds and kinds & {int, float} and any(isinstance(v, bool) for v in values):
            raise ValueError(f"should be a number, not {value!r}")
        return value


def describe(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem of a configuration in one line; an unknown option before any other."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r} ({near_name(name, kind.model_fields)})"
    message = WORDS.get(first["type"], first["msg"].removeprefix("Value error, ").replace("\n", " "))
    if not name:
        return message
    return f"{name}: {message}" if first["type"] == "value_error" else f"{name}={first['input']!r}: {message}"


def near_name(name: str, fields: Mapping[str, Any], others: tuple[str, ...] = ()) -> str:
    """A hint for an unknown option: the name that it may stand for, or all names."""
    near = OTHER_NAMES.get(name)
    if near not in fields:
        near = next(iter(get_close_matches(name, [*fields, *others], 1)), None)
    return f"did you mean {near!r}?" if near is not None else f"known: {', '.join(fields)}"


def _leaf_types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: {int, NoneType} for ``int | None``."""
    parts = get_args(annotation)
    return {annotation} if not parts else {kind for part in parts for kind in _leaf_types(part)}
