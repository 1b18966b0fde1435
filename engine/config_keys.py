"""JSON files of a model or adapter folder; typed look-ups in them, whose errors name file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from proactor.engine.reading import read_regular
from proactor.engine.types import EngineError


class CheckpointError(EngineError):
    """A model or adapter folder that cannot be read or written; names the file and the key or tensor."""


LARGEST_JSON = 2**26
"""Bytes of a JSON file of a model or adapter folder."""
LARGEST_INTEGER = 2**31 - 1
"""Sizes, counts and token ids; what is made of them is far too large for any memory long before."""
LARGEST_NUMBER = 1e30
"""Factors and bases, and the inverse of the smallest ones: float32 holds their products with positions."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises CheckpointError when it is missing or is not one."""
    try:
        text = read_regular(path, LARGEST_JSON)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    return parse_object(text, str(path))


def parse_object(text: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object of a text. Raises CheckpointError that begins with ``where`` when it is none."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise CheckpointError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # also: not UTF-8, or an integer of too many digits
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: should hold a JSON object, not {type(value).__name__}")
    return value


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file can be a number of things or a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_INTEGER


class Keys:
    """Typed look-ups in one dictionary; every error names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def error(self, key: str, what: str) -> CheckpointError:
        """A CheckpointError about one key."""
        return CheckpointError(f"{self.where}: {key}: {what}")

    def count(
        self,
        key: str,
        default: int | None = None,
        none: int | None = None,
        least: int = 1,
        most: int = LARGEST_INTEGER,
    ) -> int:
        """An integer of ``least`` to ``most``; ``default`` stands for an absent key, ``none`` for an explicit
        null.
        """
        value = self.values.get(key, default)
        value = none if value is None else value
        if value is None:
            raise self.error(key, "missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(key, f"should be an integer of at least {least}, not {value!r}")
        if value > most:
            raise self.error(key, f"{value} is too large, at most {most} is supported")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number up to `LARGEST_NUMBER`; ``default`` stands for an absent key or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(key, f"should be a positive number, not {value!r}")
        if not 1 / LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            raise self.error(key, f"{value!r} is not between {1 / LARGEST_NUMBER:g} and {LARGEST_NUMBER:g}")
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
        if value is not None and not is_count(value):
            raise self.error(key, f"should be a token id, not {value!r}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty for an absent key or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"should be an object, not {value!r}")
        return dict(value or {})
