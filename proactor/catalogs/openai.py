"""Tool definitions as chat APIs take them: ``{"type": "function", "function": {…}}`` or flat, bare ``{name,
description, parameters}``, and those of MCP servers (``inputSchema``); in a list, alone, or under `tools`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from proactor.catalogs.base import CatalogError, Document, Place, Reading, Tools, declared_fields, one_line
from proactor.catalogs.schema import SchemaReader, Spot
from proactor.dialogue.catalog import Tool

SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema")
WRAPPERS = ("tools", "functions")


def read(path: Path) -> Reading:
    """The tools of a file."""
    document = Document(path)
    collected = Tools()
    for place, value in _definitions(document):
        _add(collected, document.where, place, value)
    return collected.reading(path, "openai")


def read_tool(definition: object, where: str) -> Reading:
    """The one tool of a definition, found at ``where``. Raises CatalogError."""
    collected = Tools()
    _add(collected, lambda _: where, (), definition)
    return collected.reading(where, "openai")


def _definitions(document: Document) -> list[tuple[Place, Any]]:
    value: Any = document.value
    place: Place = ()
    if isinstance(value, dict):
        wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), list)), None)
        if wrapper is None:
            return [((), value)]
        value, place = value[wrapper], (wrapper,)
    if not isinstance(value, list):
        raise CatalogError(f"{document.where()}: not a list of tools")
    return [((*place, position), one) for position, one in enumerate(value)]


def _add(collected: Tools, where_of: Callable[[Place], str], place: Place, outer: Any) -> None:
    where = where_of(place)
    if not isinstance(outer, Mapping):
        raise CatalogError(f"{where}: a tool is an object, found {type(outer).__name__}")
    if outer.get("type", "function") != "function" and not any(key in outer for key in SCHEMA_KEYS):
        raise CatalogError(
            f"{where}: a tool of type {outer['type']!r}; only functions have parameters to fill"
        )
    inner, inside = outer, place
    if isinstance(outer.get("function"), Mapping):
        inner, inside = outer["function"], (*place, "function")
    name = inner.get("name")
    key = next((key for key in SCHEMA_KEYS if inner.get(key) is not None), None)
    schema = inner[key] if key else {}

    def build() -> Tool:
        reader = SchemaReader(str(name), where_of, collected.remarks)
        there = (*inside, key) if key else inside
        spot = Spot(schema, schema if isinstance(schema, Mapping) else {}, there, there)
        return Tool(
            name=str(name),
            description=one_line(inner.get("description")),
            parameters=reader.parameters(spot),
            **declared_fields(where, name, outer, inner, schema),
        )

    collected.add(where, name, build)
