"""Our own ``catalog.json``, as `write_catalog` writes it and as people edit it. Where a tool has no `effect`
or `confirm` the field stays unset, so that a proposal can fill it in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proactor.catalogs.base import CatalogError, Document, Place, Reading, Tools
from proactor.dialogue.catalog import Parameter, Tool

NAME = "catalog.json"


def read(path: Path) -> Reading:
    """The tools of a file, or of ``catalog.json`` in a folder."""
    document = Document(path / NAME if path.is_dir() else path)
    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("tools"), list):
        raise CatalogError(f"{document.where()}: no list `tools`")
    if other := sorted(value.keys() - {"tools"}):
        raise CatalogError(f"{document.where((other[0],))}: unknown key {other[0]!r} beside `tools`")
    collected = Tools()
    for position, tool in enumerate(value["tools"]):
        _add(collected, document, ("tools", position), tool)
    return collected.reading(document.file, "proactor")


def _add(collected: Tools, document: Document, place: Place, tool: Any) -> None:
    if not isinstance(tool, dict):
        raise CatalogError(f"{document.where(place)}: a tool is an object, found {type(tool).__name__}")
    name = tool.get("name")

    def build() -> Tool:
        try:
            return Tool.model_validate(tool)
        except ValidationError as error:
            raise CatalogError(_message(document, place, tool, error)) from None

    collected.add(document.where(place), name, build)


def _message(document: Document, place: Place, tool: dict[str, Any], error: ValidationError) -> str:
    """The first problem in one line: file and line, tool, parameter, what is wrong."""
    first = error.errors()[0]
    at = tuple(first["loc"])
    about = f"tool {tool['name']!r}"
    if at[:1] == ("parameters",) and len(at) > 1:
        parameter = tool["parameters"][at[1]]
        name = parameter.get("name") if isinstance(parameter, dict) else None
        about += f", parameter {name!r}" if name else f", parameter {at[1]}"
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        fields = Parameter if at[0] == "parameters" else Tool
        what = f"unknown key {at[-1]!r} (known: {', '.join(fields.model_fields)})"
    elif first["type"] == "literal_error":
        what = f"unknown {at[-1]} {first['input']!r} (known: {first['ctx']['expected']})"
    elif at and first["type"] != "value_error":
        what = f"{at[-1]}: {what}"
    return f"{document.where((*place, *at))}: {about}: {what}"
