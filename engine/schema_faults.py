"""Where in a JSON schema a fault lies: a library's message rarely says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

_NAMED: Final = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTED: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SHARED: Final = ("$defs", "definitions")
MOST_TRIES: Final = 500
"""Parts that are tried; beyond them the place is that of a larger part."""


def place_of(schema: Any, fault_of: Callable[[Any], str]) -> str:
    """JSON pointer of the smallest part of ``schema`` that has the same fault by itself; "" for the whole.

    ``fault_of``: what is wrong with a schema, "" for nothing.
    """
    fault, place, left = fault_of(schema), "", MOST_TRIES
    shared = {key: schema[key] for key in _SHARED if key in schema} if isinstance(schema, Mapping) else {}
    part, parts = schema, _parts(schema)
    while (found := next(parts, None)) is not None and left:
        left -= 1
        step, inner = found
        if fault_of({**shared, **inner} if isinstance(inner, Mapping) else inner) == fault:
            place, part = place + step, inner
            parts = _parts(part)
    return place


def _parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that one is made of, with their pointers from it."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            yield from ((f"/{key}/{_escaped(name)}", inner) for name, inner in value.items())
        elif key in _LISTED and isinstance(value, list):
            yield from ((f"/{key}/{i}", inner) for i, inner in enumerate(value))
        elif isinstance(value, Mapping) and key not in _NAMED:
            yield f"/{key}", value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
