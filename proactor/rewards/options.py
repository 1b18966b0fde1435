"""Options of a reward, read from a config: strict. A `RewardError` is one line and names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.engine import ProactorError

Model = TypeVar("Model", bound=BaseModel)


class RewardError(ProactorError):
    """A reward that is unknown, has wrong options, raises, or gives no finite number for a completion."""


class RewardOptions(BaseModel):
    """Base of all options: immutable; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


def read_options(model: type[Model], options: Mapping[str, Any], where: str) -> Model:
    """Validate ``options`` as ``model``.

    Raises RewardError, one line, with ``where``, the key and the fault; unknown keys come first.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = f" (known: {', '.join(model.model_fields)})" if len(first["loc"]) == 1 else ""
            raise RewardError(f"{where}: unknown key {key!r}{known}") from None
        message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise RewardError(f"{where}: {key}: {message}{got}") from None
