"""Types of parameters, one by one: what a schema's words become, and what is counted as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proactor.catalogs import CatalogError, read, read_catalog
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
        Case({"type": ["string", "null"], "enum": ["F", "C"]}, "enum", ("F", "C"), required=False),
        Case({"type": ["integer", "null"], "const": 3}, "integer", ("3",), required=False),
        Case({"nullable": True, "anyOf": [{"const": "a"}, {"const": "b"}]}, "enum", ("a", "b"), False),
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


@pytest.mark.parametrize(
    "more",
    [
        {"type": ["object", "null"]},
        {"type": "object", "nullable": True},
        {"type": "object", "default": {}},
    ],
)
def test_an_object_that_may_be_left_out_is_flattened_too(tmp_path: Path, more: dict[str, Any]) -> None:
    inner = {"properties": {"street": PLAIN}, "required": ["street"], **more}
    schema = {"type": "object", "properties": {"at": inner}, "required": ["at"]}
    reading = read(put(tmp_path, {"a": schema}))
    assert [(p.name, p.required) for p in reading.catalog["a"].parameters] == [("at.street", False)]
    assert reading.counters == {"flattened": 1}


A, B, C = ({"properties": {name: PLAIN}, "required": [name]} for name in "abc")


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"oneOf": [A, B]}, "a?b?"),
        ({"anyOf": [A, B], **C}, "ca?b?"),
        ({"if": A, "then": B, "else": C}, "b?c?"),
        ({"if": A, "then": B, "else": False}, "b?"),
        ({"allOf": [{"if": A, "then": B}, {"if": A, "then": C}]}, "b?c?"),
        ({"allOf": [{"oneOf": [A]}, {"oneOf": [B]}, {"oneOf": [C]}]}, "a?b?c?"),
        ({"oneOf": [A, B], "required": ["a"]}, "ab?"),
        ({"oneOf": [{"anyOf": [A, B]}, C]}, "a?b?c?"),
        ({**A, "dependentSchemas": {"a": B}}, "ab?"),
        ({**A, "anyOf": [{"required": ["a"]}]}, "a"),
        ({"$defs": {"base": {"oneOf": [A, B]}}, "$ref": "#/$defs/base", "anyOf": [C]}, "c?a?b?"),
    ],
)
def test_parameters_that_hold_at_times_are_optional(
    tmp_path: Path, schema: dict[str, Any], names: str
) -> None:
    reading = read(put(tmp_path, {"f": {"type": "object", **schema}}))
    found = "".join(p.name + ("" if p.required else "?") for p in reading.catalog["f"].parameters)
    assert found == names and reading.counters == {"branches_joined": 1}


def test_an_object_inside_has_its_branches_too(tmp_path: Path) -> None:
    inner = {"type": "object", **C, "anyOf": [A, B]}
    reading = read(put(tmp_path, [function(x=inner, y={"anyOf": [inner, {"type": "null"}]})]))
    names = [p.name for p in reading.catalog["a"].parameters]
    assert names == ["x.c", "x.a", "x.b", "y.c", "y.a", "y.b"]
    assert reading.counters == {"flattened": 2, "branches_joined": 2}


def test_what_two_alternatives_say_of_a_parameter_counts(tmp_path: Path) -> None:
    kinds = [{"properties": {"kind": {"const": kind}, "x": PLAIN}} for kind in ("a", "b")]
    (tool,) = read_catalog(put(tmp_path, {"f": {"type": "object", "oneOf": kinds}})).tools
    assert [(p.name, p.values) for p in tool.parameters] == [("kind", ("a", "b")), ("x", ())]


def test_properties_beside_a_reference_join_its_own(tmp_path: Path) -> None:
    schema = {"$defs": {"base": A}, "$ref": "#/$defs/base", **B}
    (tool,) = read_catalog(put(tmp_path, {"f": {"type": "object", **schema}})).tools
    assert {(p.name, p.required) for p in tool.parameters} == {("a", True), ("b", True)}


@pytest.mark.parametrize(
    ("schema", "open"),
    [
        ({}, True),
        ({"additionalProperties": True}, True),
        ({**A, "additionalProperties": {}}, True),
        ({"patternProperties": {"^x": PLAIN}}, True),
        ({"additionalProperties": False}, False),
        ({"properties": {}}, False),
        (A, False),
    ],
)
def test_parameters_that_are_not_listed_are_told(tmp_path: Path, schema: dict[str, Any], open: bool) -> None:
    reading = read(put(tmp_path, {"f": {"type": "object", **schema}}))
    assert reading.counters == ({"unlisted_left_out": 1} if open else {})


def test_conditions_that_lead_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="tool 'f': alternatives inside each other, 8 deep"):
        read(put(tmp_path, {"f": {"type": "object", **A, "then": {"$ref": "#/f"}}}))
