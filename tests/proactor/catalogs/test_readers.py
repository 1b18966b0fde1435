"""Readers of tools, on what real libraries write and on what people get wrong: each error names file, line,
tool and parameter.
"""

from __future__ import annotations

from datetime import date, datetime, time
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from proactor.catalogs import detect, read, read_catalog, write_catalog
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.sources import load
from tests.proactor.catalogs.definitions import API, SERVICE, put


class Room(Enum):
    QUIET = "quiet"
    LOUD = "loud"


class Address(BaseModel):
    street: str = Field(description="with the number")
    zip: int | None = None


class Node(BaseModel):
    name: str
    next: Node | None = None


class Booking(BaseModel):
    """Book a table.

    The place is told at once."""

    day: date
    at: time
    room: Room
    place: Address
    until: datetime
    tags: list[Literal["vegan", "late"]]
    size: Literal[1, 2] | None = None
    mood: Literal["x"] | Literal["y"] = "x"
    deposit: int | float = 0
    code: int | str = 1
    outside: bool = Field(False, description="in the garden\nor not")
    extra: dict[str, int] = {}
    second: Address | None = None


BOOKING = (
    Parameter(name="day", type="date"),
    Parameter(name="at", type="time"),
    Parameter(name="room", type="enum", values=("quiet", "loud")),
    Parameter(name="place.street", description="with the number"),
    Parameter(name="place.zip", type="integer", required=False),
    Parameter(name="until"),
    Parameter(name="tags", values=("vegan", "late")),
    Parameter(name="size", type="integer", required=False, values=("1", "2")),
    Parameter(name="mood", type="enum", required=False, values=("x", "y")),
    Parameter(name="deposit", type="number", required=False),
    Parameter(name="code", required=False),
    Parameter(name="outside", type="boolean", required=False, description="in the garden or not"),
    Parameter(name="extra", required=False),
    Parameter(name="second.street", required=False, description="with the number"),
    Parameter(name="second.zip", type="integer", required=False),
)
REMARKS = {
    "flattened": 2,
    "datetime_as_text": 1,
    "array_as_text": 1,
    "union_as_text": 1,
    "object_as_text": 1,
}


# -- what libraries write ---


def test_a_pydantic_model(tmp_path: Path) -> None:
    reading = read(put(tmp_path, Booking.model_json_schema()))
    (tool,) = reading.catalog.tools
    assert (reading.format, tool.name) == ("jsonschema", "Booking")
    assert tool.description == "Book a table. The place is told at once."
    assert tool.parameters == BOOKING and reading.counters == REMARKS
    assert not tool.model_fields_set & {"effect", "confirm"}


def test_pydantic_models_by_name_and_as_definitions(tmp_path: Path) -> None:
    by_name = {"book": Booking.model_json_schema(), "go": Address.model_json_schema()}
    assert read_catalog(put(tmp_path, by_name)).names == ("book", "go")
    _, both = models_json_schema([(Booking, "validation"), (Node, "validation")])
    reading = read(put(tmp_path, both))
    assert reading.catalog.names == ("Booking",)  # the parts that others refer to are not tools of their own
    assert reading.catalog.tools[0].parameters == BOOKING
    listed = read_catalog(put(tmp_path, [Address.model_json_schema()]))
    assert listed.names == ("Address",)


def test_a_folder_of_schemas(tmp_path: Path) -> None:
    put(tmp_path, {"type": "object", "properties": {"a": {"type": "string"}}}, "one.json")
    put(tmp_path, {"title": "Zwei", "type": "object"}, "two.json")
    assert read_catalog(tmp_path).names == ("one", "Zwei")


def test_a_model_that_refers_to_itself(tmp_path: Path) -> None:
    reading = read(put(tmp_path, Node.model_json_schema()), "jsonschema")
    assert reading.catalog["Node"].parameters == (
        Parameter(name="name"),
        Parameter(name="next.name", required=False),
        Parameter(name="next.next", required=False),
    )
    assert reading.counters == {"flattened": 1, "object_as_text": 1}


def test_openai_tools(tmp_path: Path) -> None:
    tools = [openai.pydantic_function_tool(Booking, name="book"), openai.pydantic_function_tool(Address)]
    reading = read(put(tmp_path, tools))
    assert reading.format == "openai" and reading.catalog.names == ("book", "Address")
    # strict tools list every parameter as required and let the optional ones be null or keep their default
    assert [(p.name, p.required) for p in reading.catalog["book"].parameters if p.name != "mood"] == [
        (p.name, p.required) for p in BOOKING if p.name != "mood"
    ]


def test_flat_bare_and_wrapped_openai_tools(tmp_path: Path) -> None:
    schema = Address.model_json_schema()
    flat: FunctionToolParam = {
        "type": "function",
        "name": "a",
        "parameters": schema,
        "strict": False,
        "description": "one\ntwo",
    }
    bare = {"name": "b", "description": "B", "parameters": schema}
    empty = {"type": "function", "function": {"name": "c"}}
    for value in ([flat, bare, empty], {"tools": [flat, bare, empty]}, {"functions": [flat, bare, empty]}):
        reading = read(put(tmp_path, value))
        assert reading.format == "openai" and reading.catalog.names == ("a", "b", "c")
        assert reading.catalog["a"].description == "one two" and reading.catalog["c"].parameters == ()
        assert reading.catalog["a"].parameters == reading.catalog["b"].parameters
    assert read_catalog(put(tmp_path, bare)).names == ("b",)


def test_tools_of_transformers(tmp_path: Path) -> None:
    from transformers.utils import get_json_schema

    def find(place: str, kind: Literal["bar", "cafe"] = "bar", tags: list[str] | None = None) -> None:
        """
        Find a place.

        Args:
            place: near what
            kind: of place
            tags: any
        """

    (tool,) = read_catalog(put(tmp_path, [get_json_schema(find)])).tools
    assert [(p.name, p.type, p.required) for p in tool.parameters] == [
        ("place", "string", True),
        ("kind", "enum", False),
        ("tags", "string", False),
    ]
    assert tool.description == "Find a place."


def test_effects_that_a_definition_declares(tmp_path: Path) -> None:
    def mcp(name: str, **hints: bool) -> dict[str, Any]:
        return {"name": name, "inputSchema": {"type": "object"}, "annotations": {"title": "T", **hints}}

    tools = [
        mcp("look", readOnlyHint=True),
        mcp("wipe", readOnlyHint=False, destructiveHint=True),
        mcp("add", readOnlyHint=False),
        mcp("silent", idempotentHint=True),
        mcp("both", destructiveHint=True) | {"x-effect": "write"},
        {
            "type": "function",
            "x-confirm": True,
            "function": {"name": "inside", "x-effect": "write", "x-confirm": False},
        },
        {"name": "schema", "parameters": {"type": "object", "x-effect": "irreversible", "x-confirm": False}},
        {"name": "flat", "readOnlyHint": True, "input_schema": {"type": "object"}},
    ]
    catalog = read_catalog(put(tmp_path, {"tools": tools}))
    assert {t.name: (t.effect, t.confirm) for t in catalog.tools} == {
        "look": ("read", False),
        "wipe": ("irreversible", True),
        "add": ("write", False),
        "silent": ("write", False),
        "both": ("write", True),
        "inside": ("write", True),
        "schema": ("irreversible", False),
        "flat": ("read", False),
    }
    given = {t.name: t.model_fields_set & {"effect", "confirm"} for t in catalog.tools}
    assert given["silent"] == set() and given["add"] == {"effect"} and given["look"] == {"effect", "confirm"}
    by_name = {"go": {"type": "object", "x-effect": "read"}}
    assert read_catalog(put(tmp_path, by_name))["go"].effect == "read"


# -- our own, and the corpora's ---


@given(
    st.lists(
        st.builds(
            Tool,
            name=st.text(min_size=1).filter(str.strip),
            description=st.text(),
            effect=st.sampled_from(["read", "write", "irreversible"]),
            confirm=st.booleans(),
            parameters=st.lists(
                st.builds(Parameter, name=st.text(min_size=1), values=st.just(("a",)), type=st.just("enum")),
                unique_by=lambda p: p.name,
                max_size=3,
            ).map(tuple),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda t: t.name,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path: Path, tools: list[Tool]) -> None:
    catalog = Catalog(tools=tuple(tools))
    write_catalog(catalog, tmp_path / "catalog.json")
    assert read_catalog(tmp_path / "catalog.json") == catalog == read_catalog(tmp_path)
    assert detect(tmp_path) == detect(tmp_path / "catalog.json") == "proactor"


def test_a_catalog_written_by_hand_may_leave_effects_open(tmp_path: Path) -> None:
    (tool,) = read_catalog(put(tmp_path, {"tools": [{"name": "go", "parameters": [{"name": "to"}]}]})).tools
    assert tool.parameters == (Parameter(name="to"),) and not tool.model_fields_set & {"effect", "confirm"}


def test_sgd_and_star_files(tmp_path: Path) -> None:
    sgd = read(put(tmp_path, [SERVICE], "schema.json"))
    assert sgd.format == "sgd" and sgd.catalog["Cars_1.Rent"].effect == "irreversible"
    assert read(tmp_path).format == "sgd"
    (tmp_path / "star").mkdir()
    star = read(put(tmp_path / "star", {"ride": API}, "apis.json"))
    assert star == read(tmp_path / "star") and star.format == "star" and star.catalog.names == ("ride",)
    (tmp_path / "release").mkdir()
    put(tmp_path / "release", API, "ride.json")  # the release has a file for each
    assert read(tmp_path / "release").catalog == star.catalog


@pytest.mark.parametrize("name", ["sgd", "star"])
def test_real_files_give_the_catalog_that_the_source_gives(data_dir: Path, name: str) -> None:
    folder = data_dir / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    reading = read(folder)
    assert reading.format == name and reading.catalog == load(name, folder, limit=1).catalog
