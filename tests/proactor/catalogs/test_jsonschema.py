"""Types of parameters, one by one: what a schema's words become, and what is counted as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proactor.catalogs import read, read_catalog
from tests.proactor.catalogs.definitions import PLAIN, function, put


@dataclass(frozen=True)
class Case:
    schema: dict[str, Any]
    type: str
    values: tuple[str, ...] = ()
    required: bool = True
    kind: str = ""


@pytest.mark.parametrize(
    "case",
    [
        Case({"type": "string", "format": "email"}, "string"),
        Case({"type": ["integer", "null"]}, "integer", required=False),
        Case({"type": ["integer", "number"]}, "number"),
        Case({"type": ["integer", "string"]}, "string", kind="union_as_text"),
        Case({"type": "string", "nullable": True}, "string", required=False),
        Case({"enum": [True, False]}, "boolean"),
        Case({"enum": ["a", None, "a", 2, True]}, "enum", ("a", "2", "true"), required=False),
        Case({"oneOf": [{"const": "a"}, {"const": "b"}]}, "enum", ("a", "b")),
        Case({"anyOf": [{"enum": ["a"]}, {"type": "string"}]}, "string", ("a",), kind="union_as_text"),
        Case({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, "enum", ("a",)),
        Case({"default": 3, "type": "integer"}, "integer", required=False),
        Case({}, "string", kind="untyped_as_text"),
        Case({"items": {"type": "string"}}, "string", kind="array_as_text"),
        Case({"type": "object"}, "string", kind="object_as_text"),
    ],
)
def test_types(tmp_path: Path, case: Case) -> None:
    schema = {"type": "object", "properties": {"x": case.schema}, "required": ["x"]}
    reading = read(put(tmp_path, {"a": schema}))
    (parameter,) = reading.catalog["a"].parameters
    assert (parameter.type, parameter.values, parameter.required) == (case.type, case.values, case.required)
    assert reading.counters == ({case.kind: 1} if case.kind else {})


def test_objects_in_parts(tmp_path: Path) -> None:
    base = {"properties": {"x": {"type": "integer"}}, "required": ["x"]}
    more = {"properties": {"y": PLAIN}, "required": ["y"]}
    (tool,) = read_catalog(put(tmp_path, {"a": {"allOf": [base, more]}})).tools
    assert {(p.name, p.type, p.required) for p in tool.parameters} == {
        ("x", "integer", True),
        ("y", "string", True),
    }


def test_deeper_objects_are_text(tmp_path: Path) -> None:
    deep = {
        "type": "object",
        "properties": {"in": {"type": "object", "properties": {"er": PLAIN}}, "n": {"type": "integer"}},
    }
    (tool,) = read_catalog(put(tmp_path, [function(x=deep)])).tools
    assert [(p.name, p.type) for p in tool.parameters] == [("x.in", "string"), ("x.n", "integer")]


def test_annotated_words_win_over_none(tmp_path: Path) -> None:

    schema = {"properties": {"x": {"anyOf": [{"type": "integer", "description": "inner"}, {"type": "null"}]}}}
    (tool,) = read_catalog(put(tmp_path, {"a": schema})).tools
    assert tool.parameters[0].description == "inner"
