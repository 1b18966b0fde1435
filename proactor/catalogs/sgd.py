"""Tools from the schema files of Schema-Guided Dialogue: services with intents and slots.

Each intent is a tool, `service.intent`. Transactional intents write and need assent; those that move money
cannot be undone [INFERRED].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from proactor.catalogs.base import CatalogError, Document, Reading, Tools, build_tool
from proactor.dialogue.catalog import Effect, Parameter, ParameterType, Tool
from proactor.files import find_files, first_problem

_MONEY = re.compile(r"Buy|Purchase|Pay|Transfer|Send|Rent")


class _Slot(BaseModel):
    name: str
    description: str
    is_categorical: bool
    possible_values: list[Any]


class _Intent(BaseModel):
    name: str
    description: str
    is_transactional: bool
    required_slots: list[str]
    optional_slots: dict[str, Any] | list[str]


class _Service(BaseModel):
    """The keys of a service that the tools are made of, with their types; other keys are ignored."""

    slots: list[_Slot]
    intents: list[_Intent]


def read(path: Path) -> Reading:
    """The tools of a schema file, or of all schema files in a folder and one level below."""
    collected = Tools()
    for where, service in _services(path):
        for intent in service["intents"]:
            collected.add(
                where, f"{service['service_name']}.{intent['name']}", partial(tool, service, intent)
            )
    return collected.reading(path, "sgd")


def read_schema(path: Path) -> dict[str, dict[str, Any]]:
    """Services by name, from a file or from all schema files in a folder and one level below."""
    return {service["service_name"]: service for _, service in _services(path)}


def _services(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, service) of each service, checked. A service repeats over the parts of the release; the
    first one counts.
    """
    seen: dict[str, str] = {}
    for file in find_files(path, "schema*.json", "*/schema.json"):
        document = Document(file)
        if not isinstance(document.value, list):
            raise CatalogError(f"{file}:1: not a list of services")
        here: dict[str, str] = {}
        for position, service in enumerate(document.value):
            where = document.where((position,))
            name = service.get("service_name") if isinstance(service, dict) else None
            if not isinstance(name, str) or not name:
                raise CatalogError(f"{where}: a service without service_name")
            if name in here:
                raise CatalogError(f"{where}: service {name!r} is defined twice (first in {here[name]})")
            here[name] = where
            if name in seen:
                continue
            seen[name] = where
            _check(where, service)
            yield where, service


def _check(where: str, service: dict[str, Any]) -> None:
    here, seen = f"{where}: service {service['service_name']!r}", set[str]()
    try:
        _Service.model_validate(service)
    except ValidationError as error:
        raise CatalogError(f"{here}: {first_problem(error)}") from None
    slots = {slot["name"] for slot in service["slots"]}
    for intent in service["intents"]:
        name = intent["name"]
        if not name or name in seen:
            what = "is defined twice" if name else "has no name"
            raise CatalogError(f"{here}: intent {name!r} {what}")
        seen.add(name)
        for slot in (*intent["required_slots"], *intent["optional_slots"]):
            if slot not in slots:
                raise CatalogError(f"{here}: intent {name!r}: slot {slot!r} is missing")
        build_tool(where, f"{service['service_name']}.{name}", partial(tool, service, intent))


def tools(schema: dict[str, dict[str, Any]]) -> Iterator[Tool]:
    """The tools of all services, in order."""
    return (tool(service, intent) for service in schema.values() for intent in service["intents"])


def tool(service: dict[str, Any], intent: dict[str, Any]) -> Tool:
    """The tool of one intent of a service that was checked."""
    slots = {slot["name"]: slot for slot in service["slots"]}
    effect: Effect = "read"
    if intent["is_transactional"]:
        effect = "irreversible" if _MONEY.search(intent["name"]) else "write"
    required = set(intent["required_slots"])
    return Tool(
        name=f"{service['service_name']}.{intent['name']}",
        description=intent["description"],
        effect=effect,
        confirm=intent["is_transactional"],
        parameters=tuple(
            _parameter(slots[name], name in required)
            for name in (*intent["required_slots"], *intent["optional_slots"])
        ),
    )


def _parameter(slot: dict[str, Any], required: bool) -> Parameter:
    values = tuple(map(str, slot["possible_values"]))
    kind: ParameterType = "string"
    if values and {v.lower() for v in values} <= {"true", "false"}:
        kind, values = "boolean", ()
    elif values and all(v.isdigit() for v in values):
        kind = "integer"
    elif slot["is_categorical"] and values:
        kind = "enum"
    elif slot["name"].endswith(("date", "time")):
        kind = "date" if slot["name"].endswith("date") else "time"
    return Parameter(
        name=slot["name"], type=kind, required=required, description=slot["description"], values=values
    )
