"""Options of a reward, read from a config: strict. A `RewardError` is one line and names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.engine import ProactorError
from proactor.files import settings_problem

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
        known = f" (known: {', '.join(model.model_fields)})"
        _, problem = settings_problem(error, lambda place: known if len(place) == 1 else "")
        raise RewardError(f"{where}: {problem}") from None
