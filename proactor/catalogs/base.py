"""Shared by all readers of tools: JSON with line numbers, a tool collection, and remarks on inexact fits."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from proactor.dialogue.catalog import Catalog, Effect, Tool
from proactor.files import SourceError, first_problem, parse_json, read_bytes

Place = tuple[str | int, ...]
"""Keys and positions from the top of a JSON file to a value in it."""

DEEPEST = 64
"""Lists and objects inside each other in a file of tools."""
LARGEST_CATALOG = 2**24
"""Bytes of a file of tools, unpacked."""
MOST_VALUES = 2**20
"""Keys and items in it."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


class CatalogError(SourceError):
    """Tools that cannot be read. One line, ``file:line: what``, names the tool and the parameter, if any."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What a catalog cannot hold exactly; ``kind``: its treatment. ``parameter``: "" for a whole tool."""

    tool: str
    parameter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A catalog, the format it was read from, and remarks on what did not fit exactly."""

    catalog: Catalog
    format: str
    remarks: tuple[Remark, ...] = ()

    @property
    def counters(self) -> dict[str, int]:
        """Number of remarks by kind."""
        return dict(Counter(remark.kind for remark in self.remarks))


class Document:
    """A JSON file with line numbers. Raises CatalogError for a key that an object has twice."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.value: Any = json_value(file)
        seen: set[Place] = set()
        self._lines: dict[Place, int] = {(): 1}
        for place, line in positions(read_bytes(file, LARGEST_CATALOG).decode("utf-8-sig", "replace")):
            if len(place) > DEEPEST:
                raise CatalogError(f"{file}:{line}: more than {DEEPEST} lists and objects inside each other")
            if place in seen:
                raise CatalogError(
                    f"{file}:{line}: {place[-1]!r} is given twice (first in line {self._lines[place]})"
                )
            if len(seen) == MOST_VALUES:
                raise CatalogError(f"{file}:{line}: more than {MOST_VALUES} keys and items")
            seen.add(place)
            self._lines[place] = line

    def where(self, place: Place = ()) -> str:
        """``file:line`` of a value, or of what is around it where there is no such value."""
        while place not in self._lines:
            place = place[:-1]
        return f"{self.file}:{self._lines[place]}"


def json_value(file: Path) -> Any:
    """The value of a JSON file, plain or gzip. Raises CatalogError for the line that is not JSON."""
    try:
        return parse_json(read_bytes(file, LARGEST_CATALOG), file)
    except SourceError as error:
        raise CatalogError(str(error)) from None


def positions(text: str) -> Iterator[tuple[Place, int]]:
    """Place and line (from 1) of each member and item of a valid JSON text, in order."""
    # Of each open container: is it an object, its current key or position, does a key come next?
    stack: list[tuple[bool, str | int, bool]] = []
    line, end = 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", end, token.start())
        end = token.start()
        sign = token[0]
        here = tuple(step for _, step, _ in stack)
        if sign in "}]":
            stack.pop()
        elif sign == ",":
            keyed, step, _ = stack[-1]
            stack[-1] = (True, "", True) if keyed else (False, int(step) + 1, False)
        elif sign != ":" and stack and stack[-1][2]:
            stack[-1] = True, json.loads(sign), False
            yield (*here[:-1], stack[-1][1]), line
        elif sign != ":":
            if stack and not stack[-1][0]:
                yield here, line
            if sign in "{[":
                stack.append((sign == "{", "" if sign == "{" else 0, sign == "{"))


@dataclass(slots=True)
class Tools:
    """The tools of one source, collected one by one."""

    remarks: list[Remark] = field(default_factory=list)
    _tools: dict[str, tuple[Tool, str]] = field(default_factory=dict)

    def add(self, where: str, name: object, build: Callable[[], Tool]) -> None:
        """Add the tool of ``build``. Raises CatalogError for a missing or taken name or an invalid tool."""
        if not isinstance(name, str) or not name.strip():
            raise CatalogError(f"{where}: a tool without a name (name {name!r})")
        if name in self._tools:
            raise CatalogError(f"{where}: tool {name!r} is defined twice (first in {self._tools[name][1]})")
        self._tools[name] = build_tool(where, name, build), where

    def reading(self, source: object, format: str) -> Reading:
        """The catalog of all tools. Raises CatalogError when there are none."""
        if not self._tools:
            raise CatalogError(f"{source}: no tools in it")
        return Reading(
            Catalog(tools=tuple(tool for tool, _ in self._tools.values())), format, tuple(self.remarks)
        )


def build_tool(where: str, name: str, build: Callable[[], Tool]) -> Tool:
    """`build()`. Raises CatalogError, naming ``where`` and the tool, when it is not valid."""
    try:
        return build()
    except ValidationError as error:
        raise CatalogError(f"{where}: tool {name!r}: {first_problem(error)}") from None


def one_line(text: object) -> str:
    """A description on one line; "" for anything but text."""
    return " ".join(text.split()) if isinstance(text, str) else ""


def declared_fields(where: str, name: object, *holders: object) -> dict[str, Any]:
    """`effect` and `confirm` as a tool definition declares them; undeclared fields are absent.

    The first holder (the tool, its function, its schema) with ``x-effect`` or ``x-confirm`` decides.
    Otherwise the hints of MCP tool definitions do, in `annotations` or flat: readOnlyHint true reads and
    needs no assent; destructiveHint true is irreversible and needs assent; readOnlyHint false alone writes
    [INFERRED: MCP's own default would call each such tool destructive]. An absent hint declares nothing.
    """
    fields: dict[str, Any] = {}
    hints: dict[str, bool] = {}
    for holder in (h for h in holders if isinstance(h, Mapping)):
        if "x-effect" in holder:
            if holder["x-effect"] not in get_args(Effect):
                known = ", ".join(get_args(Effect))
                raise CatalogError(
                    f"{where}: tool {name!r}: x-effect {holder['x-effect']!r} is not one of {known}"
                )
            fields.setdefault("effect", holder["x-effect"])
        if "x-confirm" in holder:
            fields.setdefault("confirm", _flag(where, name, "x-confirm", holder["x-confirm"]))
        annotations = holder.get("annotations")
        for place in (annotations if isinstance(annotations, Mapping) else {}, holder):
            for key in ("readOnlyHint", "destructiveHint"):
                if place.get(key) is not None:
                    hints.setdefault(key, _flag(where, name, key, place[key]))
    return _fields_of_hints(hints) | fields


def _flag(where: str, name: object, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CatalogError(f"{where}: tool {name!r}: {key} {value!r} is neither true nor false")
    return value


def _fields_of_hints(hints: Mapping[str, bool]) -> dict[str, Any]:
    if hints.get("readOnlyHint"):
        return {"effect": "read", "confirm": False}
    if hints.get("destructiveHint"):
        return {"effect": "irreversible", "confirm": True}
    return {"effect": "write"} if "readOnlyHint" in hints else {}


def json_files(folder: Path) -> Sequence[Path]:
    """The JSON files of a folder, sorted."""
    return sorted(f for f in folder.glob("*.json") if f.is_file())
