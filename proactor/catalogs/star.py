"""Tools from the API files of STAR: apis.json (APIs by name), or the release's folder, one file per API.

An API that is both checked and booked (RequestType) becomes two tools: `x.check` reads, `x.book` writes and
needs assent [DERIVED from the files].
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from proactor.catalogs.base import CatalogError, Document, Place, Reading, Tools, build_tool, json_files
from proactor.dialogue.catalog import Effect, Parameter, ParameterType, Tool
from proactor.files import first_problem

# APIs without RequestType that change something [INFERRED]; all others without it only look things up.
_WRITES = frozenset(
    {"meeting_schedule", "hotel_service_request", "spaceship_access_codes", "spaceship_life_support"}
)
_REQUEST = "RequestType"
_TYPES: dict[str, ParameterType] = {
    "Integer": "integer",
    "Boolean": "boolean",
    "Categorical": "enum",
    "CategoricalMultiple": "string",
    "ShortString": "string",
    "LongString": "string",
    _REQUEST: "enum",
}


class _Entry(BaseModel):
    Name: str
    Categories: list[Any] = []
    ReadableName: str = ""


class _Api(BaseModel):
    """The keys of an API that its tool is made of, with their types; other keys are ignored."""

    input: list[_Entry]
    required: list[str]
    function: str = ""


def read(path: Path) -> Reading:
    """The tools of an API file or folder."""
    collected = Tools()
    for name, (where, api) in _apis(path).items():
        for one in tools(name, api):
            collected.add(where, one.name, partial(Tool.model_copy, one))
    return collected.reading(path, "star")


def read_apis(path: Path) -> dict[str, dict[str, Any]]:
    """APIs by name, checked."""
    return {name: api for name, (_, api) in _apis(path).items()}


def _apis(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """(file:line, API) by name, checked. Raises CatalogError, naming file, line, API and parameter."""
    together = path / "apis.json" if path.is_dir() else path
    listed: list[tuple[str, Document, Place, Any]] = []
    if path.is_dir() and not together.is_file() and (files := json_files(path)):
        for file in files:
            document = Document(file)
            listed.append((file.stem, document, (), document.value))
    else:
        document = Document(together)
        if not isinstance(document.value, dict):
            raise CatalogError(f"{together}:1: not an object of APIs by name")
        listed = [(name, document, (name,), api) for name, api in document.value.items()]
    for name, document, place, api in listed:
        _check(name, document, place, api)
    return {name: (document.where(place), api) for name, document, place, api in listed}


def _check(name: str, document: Document, place: Place, api: Any) -> None:
    where = document.where(place)
    if not name.strip():
        raise CatalogError(f"{where}: an API without a name")
    if not isinstance(api, dict) or not all(isinstance(api.get(key), list) for key in ("input", "required")):
        raise CatalogError(f"{where}: API {name!r} lacks the lists `input` and `required`")
    for position, parameter in enumerate(api["input"]):
        here = document.where((*place, "input", position))
        if not isinstance(parameter, dict) or not parameter.get("Name"):
            raise CatalogError(f"{here}: API {name!r}: a parameter without a Name")
        if parameter.get("Type") not in tuple(_TYPES):
            raise CatalogError(
                f"{here}: API {name!r}, parameter {parameter['Name']!r}: unknown type "
                f"{parameter.get('Type')!r} (known: {', '.join(_TYPES)})"
            )
    try:
        _Api.model_validate(api)
    except ValidationError as error:
        raise CatalogError(f"{where}: API {name!r}: {first_problem(error)}") from None
    build_tool(where, name, lambda: tools(name, api)[0])


def tools(name: str, api: dict[str, Any]) -> list[Tool]:
    """The tool of an API, or the two of one that is checked and booked."""
    required = set(api["required"])
    parameters = tuple(
        _parameter(entry, entry["Name"] in required) for entry in api["input"] if entry["Type"] != _REQUEST
    )
    title = api.get("function", name).replace("_", " ")

    def tool(suffix: str, effect: Effect, confirm: bool) -> Tool:
        return Tool(
            name=name + suffix, description=title, effect=effect, confirm=confirm, parameters=parameters
        )

    if two_step(api):
        return [tool(".check", "read", False), tool(".book", "write", True)]
    return [tool("", "write" if name in _WRITES else "read", False)]


def two_step(api: dict[str, Any]) -> bool:
    """Whether the API is both checked and booked."""
    return any(entry["Type"] == _REQUEST for entry in api["input"])


def _parameter(entry: dict[str, Any], required: bool) -> Parameter:
    kind = _TYPES[entry["Type"]]
    values = tuple(map(str, entry.get("Categories", ())))
    return Parameter(
        name=entry["Name"],
        type="string" if kind == "enum" and not values else kind,
        required=required,
        description=entry.get("ReadableName", ""),
        values=values,
    )
