"""RewardOptions of a reward as a config gives them: unknown keys are refused by name, in one line that says
where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.engine import ProactorError

Model = TypeVar("Model", bound=BaseModel)


class RewardError(ProactorError):
    """A reward that is unknown, raised, or gave something other than one finite number a completion."""


class RewardOptions(BaseModel):
    """Base of the options: immutable, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


def read(model: type[Model], given: Mapping[str, Any], where: str) -> Model:
    """``given`` as ``model``. RewardError, one line, names ``where``, the key and what is wrong: an unknown
    key before anything else.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields) if len(first["loc"]) == 1 else ""
            raise RewardError(
                f"{where}: unknown key {key!r}{f' (known: {known})' if known else ''}"
            ) from None
        message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise RewardError(f"{where}: {key}: {message}{got}") from None
