"""One object schema per tool: a file with one schema, a list of them, ``{name: schema}``, ``$defs`` as
pydantic writes them for several models, or a folder with a file for each. A tool's name is the key, the
schema's title, or the file's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proactor.catalogs.base import (
    CatalogError,
    Document,
    Place,
    Reading,
    Tools,
    declared_fields,
    json_files,
    one_line,
)
from proactor.catalogs.schema import SchemaReader, Spot
from proactor.dialogue.catalog import Tool

_DEFINITIONS = ("$defs", "definitions")
_SAYS_SCHEMA = ("type", "properties", "$ref", "allOf")


def read(path: Path) -> Reading:
    """The tools of a file, or of all JSON files of a folder."""
    collected = Tools()
    for file in json_files(path) if path.is_dir() else [path]:
        document = Document(file)
        for name, place, schema in _schemas(document):
            _add(collected, document, name, place, schema)
    return collected.reading(path, "jsonschema")


def _schemas(document: Document) -> Iterator[tuple[object, Place, Any]]:
    value = document.value
    if isinstance(value, list):
        for position, schema in enumerate(value):
            yield (schema.get("title") if isinstance(schema, dict) else None), (position,), schema
    elif not isinstance(value, dict):
        raise CatalogError(f"{document.where()}: neither an object schema nor schemas by name")
    elif any(isinstance(value.get(key), str | list) for key in _SAYS_SCHEMA) or _is_properties(value):
        referred = str(value.get("$ref", "")).rpartition("/")[2]  # a recursive model has its title there
        yield value.get("title") or referred or document.file.name.split(".")[0], (), value
    elif key := next((key for key in _DEFINITIONS if isinstance(value.get(key), Mapping)), None):
        used = set(_references(value))
        for name, schema in value[key].items():
            if f"#/{key}/{name}" not in used:
                yield name, (key, name), schema
    else:
        for name, schema in value.items():
            if not name.startswith("$"):  # $schema, $id, $comment
                yield name, (name,), schema


def _is_properties(value: Mapping[str, Any]) -> bool:
    """Whether ``properties`` holds the properties of one schema, rather than naming a tool "properties"."""
    inside = value.get("properties")
    return isinstance(inside, Mapping) and not any(
        isinstance(inside.get(key), str) for key in ("type", "$ref")
    )


def _references(value: object) -> Iterator[str]:
    """Every ``$ref`` in ``value``: a definition referred to is part of a tool, not a tool [INFERRED]."""
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _add(collected: Tools, document: Document, name: object, place: Place, schema: Any) -> None:
    where = document.where(place)
    if not isinstance(schema, Mapping) or not any(key in schema for key in _SAYS_SCHEMA):
        raise CatalogError(f"{where}: tool {name!r}: {one_line(repr(schema))[:60]} is not an object schema")
    root, root_place = schema, place
    if isinstance(document.value, dict) and not any(key in schema for key in _DEFINITIONS):
        root, root_place = document.value, ()

    def build() -> Tool:
        reader = SchemaReader(str(name), document.where, collected.remarks)
        return Tool(
            name=str(name),
            description=one_line(schema.get("description")),
            parameters=reader.parameters(Spot(schema, root, place, root_place)),
            **declared_fields(where, name, schema),
        )

    collected.add(where, name, build)
