"""The JSON types that readers of several corpora rely on; those of one are in its own file (`abcd_records`).

`check` refuses a record of other types before a reader works on it, so that an exception inside a reader is
a bug. A missing key is left to the reader, which may not need it: its KeyError is a refusal (`base.convert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, StrictInt

MISSING: Any = None
"""Default of a key that may be missing, but not null."""


class Shape(BaseModel):
    """Base of the records and their parts."""


def check(kind: type[Shape], record: Mapping[str, Any]) -> None:
    """Raise pydantic's ValidationError where `record` has other types than `kind` says."""
    kind.model_validate(record)


class SpokenTurn(Shape):
    """A turn of a compact record."""

    speaker: str = MISSING
    text: str = MISSING


class Spoken(Shape):
    """A record of turns of any form."""

    turns: list[dict[str, Any]] = MISSING


class Window(Shape):
    """A ready window; turns count from 0."""

    earliest: StrictInt = MISSING
    latest: StrictInt = MISSING
