"""Arguments of the public calls that are of another kind than asked for: one line, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from proactor.engine.types import EngineError

T = TypeVar("T")


def short(value: Any) -> str:
    """A value as an error shows it: by its type where its text is long or has lines."""
    text = repr(value)
    name = type(value).__name__
    return text if len(text) <= 60 and "\n" not in text else f"{_article(name)} {name}"


def instance(value: Any, kind: type[T] | tuple[type[T], ...], what: str) -> T:
    """``value``. Raises EngineError that begins with ``what`` unless it is of ``kind``, or one of those."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds):
        names = " or ".join(f"{_article(k.__name__)} {k.__name__}" for k in kinds)
        raise EngineError(f"{what} should be {names}, not {short(value)}")
    return value


def integer(value: Any, what: str) -> int:
    """``value`` as an int; bools are none. Raises EngineError that begins with ``what``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise EngineError(f"{what} should be an integer, not {short(value)}")
    return int(value)


def path_of(value: Any, call: str, kind: str) -> Path:
    """A path as a `Path`. Raises EngineError, naming ``call`` and the ``kind`` of place, for anything else;
    an empty one would be the working directory.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise EngineError(f"{call}: takes {kind}, not {short(value)}")
    return Path(value)


def listed(values: Any, kinds: tuple[type[T], ...], call: str) -> Sequence[T]:
    """``values``, a list of objects of ``kinds``. Raises EngineError, naming ``call``, for anything else,
    one object by itself included.
    """
    names = " or ".join(f"{kind.__name__.lower()}s" for kind in kinds)
    if isinstance(values, kinds):
        raise EngineError(f"{call}: takes a list of {names}, not one {type(values).__name__}: write [it]")
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise EngineError(f"{call}: takes a list of {names}, not {short(values)}")
    for i, value in enumerate(values):
        if not isinstance(value, kinds):
            raise EngineError(f"{call}: takes a list of {names}; item {i} is a {type(value).__name__}")
    return values


def _article(name: str) -> str:
    """The article of a name: "an" before a vowel and before an acronym that is spoken with one."""
    return "an" if name[0] in "AEIOU" or (name.isupper() and name[0] in "FHLMNRSX") else "a"
