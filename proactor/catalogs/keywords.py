"""What the keywords of a single JSON Schema say, before any reference is followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

ALTERNATIVES = ("anyOf", "oneOf")
BRANCHES = (*ALTERNATIVES, "then", "else", "dependentSchemas")
"""Keys of schemas that hold at times."""


def kinds_of(schema: Schema) -> list[Any]:
    """The stated types but null, or the one that other keywords imply; none: unknown."""
    if "type" in schema:
        kind = schema["type"]
        return [one for one in kind if one != "null"] if isinstance(kind, list) else [kind]
    if "properties" in schema:
        return ["object"]
    return ["array"] if "items" in schema else []


def is_nullable(schema: Schema) -> bool:
    """Whether null is a value, by ``nullable`` or a list of types, which strict tools give an enum."""
    kind = schema.get("type")
    return schema.get("nullable") is True or (isinstance(kind, list) and "null" in kind)


def takes_unlisted(schema: Schema) -> bool:
    """Whether an object says that it takes properties which it does not list, or lists none at all."""
    more = schema.get("additionalProperties")
    if more is True or isinstance(more, Mapping) or schema.get("patternProperties"):
        return True
    lists = any(key in schema for key in ("properties", "allOf", *BRANCHES))
    return more is None and "type" in schema and not lists


def merged(over: Schema, under: Schema) -> dict[str, Any]:
    """Two schemas that hold together as one; ``over`` counts where they differ. A second branch beside a
    first one stays in ``allOf``.
    """
    pairs = {key: (over[key], under[key]) for key in over if key in under}
    both: dict[str, Any] = {}
    for key, (one, other) in pairs.items():
        if key == "properties" and isinstance(one, Mapping) and isinstance(other, Mapping):
            both[key] = {**one, **other}
        elif key in ("required", "allOf") and isinstance(one, list) and isinstance(other, list):
            both[key] = [*one, *other]
    if branches := {key: under[key] for key in BRANCHES if key in pairs}:
        rest: list[Any] = next(
            (s["allOf"] for s in (both, over, under) if isinstance(s.get("allOf"), list)), []
        )
        both["allOf"] = [*rest, branches]
    return {**under, **over, **both}
