"""JSON files of a model or adapter folder; typed look-ups in them, whose errors name file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proactor.engine.types import EngineError


class CheckpointError(EngineError):
    """A model or adapter folder that cannot be read or written; names the file and the key or tensor."""


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


class Keys:
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
