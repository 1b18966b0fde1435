"""Wrong tool files: one line that names file, line, tool and parameter, never a crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proactor.catalogs import FORMATS, CatalogError, Format, base, read
from proactor.catalogs.base import positions
from tests.proactor.catalogs.definitions import API, PLAIN, SERVICE, function, put


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = 1\n1 / 0\n", "bad.py:2: ZeroDivisionError"),
        ("def f(:\n", "bad.py:1: SyntaxError"),
        ("import no_such_module\n", "bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\n", "bad.py: no tools in it"),
        (
            "class C: ...\n\ndef f(a: int, b: C): ...\n",
            "bad.py:3: tool 'f', parameter 'b': unknown type <class",
        ),
        ("def f(a: Missing): ...\n", "bad.py:1: annotation"),
        ("def f(): ...\n\ndef f(): ...\n", "bad.py:3: tool 'f' is defined twice (first in line 1)"),
        (
            "def f(): ...\nf.effect = 'huge'\n",
            "bad.py:1: tool 'f': x-effect 'huge' is not one of read, write",
        ),
        (
            "from __future__ import annotations\ndef f(a: Missing): ...\n",
            "bad.py:2: tool 'f': an annotation cannot be",
        ),
    ],
)
def test_modules_that_are_no_tools(tmp_path: Path, text: str, what: str) -> None:
    file = put(tmp_path, text, "bad.py")
    if what.endswith("annotation"):
        what = "NameError"
    with pytest.raises(CatalogError) as caught:
        read(file, trust_code=True)
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert not any(name.startswith("proactor_tools_bad") for name in sys.modules) or "Error:" not in str(
        caught.value
    )


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.exit(0)\n",
        "def go(x: '1/0'): ...\n",
        "def go(x: '[][1]'): ...\n",
        "def go(x: 'exit(0)'): ...\n",
        "class A:\n    @classmethod\n    def __get_pydantic_core_schema__(cls, *a):\n"
        "        raise RuntimeError('x\\ny')\ndef go(x: A): ...\n",
        "__all__ = 5\ndef go(): ...\n",
    ],
)
def test_whatever_the_code_of_a_module_raises_is_one_line(tmp_path: Path, text: str) -> None:
    file = put(tmp_path, text, "own.py")
    with pytest.raises(CatalogError) as caught:
        read(file, trust_code=True)
    assert "own" in str(caught.value) and str(caught.value).isprintable()


def test_missing_modules(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such file"):
        read(tmp_path / "none.py", trust_code=True)
    with pytest.raises(CatalogError, match="module:no_such_tools: ModuleNotFoundError"):
        read("module:no_such_tools", trust_code=True)
    with pytest.raises(CatalogError, match="sys: no tools in it"):
        read("module:sys", trust_code=True)


@pytest.mark.parametrize("how", ["{}", "module:{}"])
def test_a_module_does_not_run_without_leave(tmp_path: Path, how: str) -> None:
    file = put(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\ndef go(): ...\n", "tools.py")
    with pytest.raises(CatalogError, match=r"runs its code; --trust-code allows it$"):
        read(how.format(file))
    assert not (tmp_path / "ran").exists()
    assert read(how.format(file), trust_code=True).catalog.names == ("go",)


def test_schemas_that_double_at_every_level_are_refused(tmp_path: Path) -> None:
    levels = {f"s{i}": {"allOf": [{"$ref": f"#/$defs/s{i + 1}"}] * 2} for i in range(60)}
    schema = {"title": "t", "type": "object", "properties": {"a": {"$ref": "#/$defs/s0"}}}
    with pytest.raises(CatalogError, match="tool 't', parameter 'a': more than 10000 schemas"):
        read(put(tmp_path, {**schema, "$defs": levels | {"s60": {"type": "string"}}}))


def test_deep_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(base, "MOST_VALUES", 4)
        with pytest.raises(CatalogError, match=r"many\.json:2: more than 4 keys and items"):
            read(put(tmp_path, "[1, 2,\n 3, 4, 5]", "many.json"), "openai")
    deep = '{"a": ' * 65 + "1" + "}" * 65
    with pytest.raises(CatalogError, match="more than 64 lists and objects inside each other"):
        read(put(tmp_path, deep, "deep.json"), "jsonschema")
    monkeypatch.setattr(base, "LARGEST_CATALOG", 100)
    with pytest.raises(CatalogError, match="more than 100 bytes"):
        read(put(tmp_path, '{"tools": []}' + " " * 100, "large.json"))


# -- what people get wrong ---


@pytest.mark.parametrize(
    ("value", "line", "what"),
    [
        ([function(), function()], 12, "tool 'a' is defined twice (first in"),
        ([function(), function("")], 12, "a tool without a name"),
        ([function(None)], 2, "a tool without a name"),
        ([function(7)], 2, "a tool without a name (name 7)"),
        (
            [function(x=PLAIN, y={"type": "colour"})],
            12,
            "tool 'a', parameter 'y': unknown type 'colour' (known: string",
        ),
        ([function(x={"type": ["string", "hue"]})], 9, "tool 'a', parameter 'x': unknown type 'hue'"),
        ([function(x={"type": "null"})], 9, "parameter 'x': accepts nothing but null"),
        ([function(x={"type": 7})], 9, "parameter 'x': unknown type 7"),
        ([function(x={"enum": []})], 9, "parameter 'x': an enum needs values"),
        ([function(x={"enum": [{}]})], 9, "parameter 'x': an enum needs values"),
        ([function(x={"enum": "abc"})], 9, "parameter 'x': `enum` is not a list"),
        ([function(x={"anyOf": []})], 9, "parameter 'x': `anyOf` is not a list"),
        ([function(x={"$ref": "#/$defs/No"})], 9, "parameter 'x': $ref '#/$defs/No' leads nowhere"),
        ([function(x={"$ref": "other.json"})], 9, "leaves the file"),
        ([function(x={"$ref": "#/properties/x"})], 9, "leads back to itself"),
        ([function(x={"anyOf": [{"$ref": "#/properties/x"}, PLAIN]})], 9, "alternatives inside each other"),
        ([function(x={"properties": {}, "allOf": [{"properties": []}]})], 12, "`properties` is not"),
        ([function(x={"properties": 3, "allOf": [{}]})], 9, "`properties` is not an object"),
        ([function(x={"allOf": [{"required": "ab"}]})], 11, "`required` is not a list"),
        ([function(x={"allOf": [{"required": 3}]})], 11, "`required` is not a list"),
        ([function(x=False)], 9, "False is not a schema"),
        (
            [function(**{"a.b": PLAIN, "a": {"type": "object", "properties": {"b": PLAIN}}})],
            2,
            "parameter 'a.b' twice",
        ),
        ([{"name": "a", "parameters": {"type": "array"}}], 4, "type 'array' is not the object"),
        ([{"name": "a", "parameters": {"properties": [1]}}], 4, "`properties` is not an object"),
        ([{"name": "a", "parameters": {"properties": {}, "required": ["z"]}}], 4, "`required` names 'z'"),
        ([{"name": "a", "parameters": {"properties": {}, "required": "z"}}], 4, "`required` is not a list"),
        ([function(), 3], 12, "a tool is an object, found int"),
        ([function(), {"type": "web_search"}], 12, "a tool of type 'web_search'"),
        (
            [function() | {"x-effect": "huge"}],
            2,
            "tool 'a': x-effect 'huge' is not one of read, write, irreversible",
        ),
        ([function() | {"x-confirm": "yes"}], 2, "tool 'a': x-confirm 'yes' is neither true nor false"),
        ([function() | {"x-confirm": 1}], 2, "x-confirm 1 is neither"),
        (
            [function() | {"annotations": {"readOnlyHint": "no"}}],
            2,
            "readOnlyHint 'no' is neither true nor false",
        ),
        ({"tools": [{"name": "a", "parameters": []}, {"name": "a"}]}, 7, "tool 'a' is defined twice"),
        ({"tools": [{"description": "x"}]}, 3, "a tool without a name"),
        (
            {"tools": [{"name": "a", "effct": "read"}]},
            5,
            "tool 'a': unknown key 'effct' (known: name, description",
        ),
        ({"tools": [{"name": "a", "effect": "huge"}]}, 5, "tool 'a': unknown effect 'huge' (known: 'read'"),
        (
            {"tools": [{"name": "a", "parameters": [{"name": "p", "type": "hue"}]}]},
            8,
            "tool 'a', parameter 'p': unknown type 'hue'",
        ),
        (
            {"tools": [{"name": "a", "parameters": [{"type": "string"}]}]},
            6,
            "tool 'a', parameter 0: name: Field required",
        ),
        (
            {"tools": [{"name": "a", "parameters": [{"name": "p", "type": "enum"}]}]},
            6,
            "'p' is an enum without values",
        ),
        ({"tools": [], "more": 1}, 3, "unknown key 'more'"),
        ({"tools": [3]}, 3, "a tool is an object"),
        ({"tools": []}, None, "no tools in it"),
        ([SERVICE, SERVICE], 24, "service 'Cars_1' is defined twice (first in"),
        ([SERVICE, {"service_name": ""}], 24, "a service without service_name"),
        ([{"service_name": "a", "slots": []}], 2, "service 'a': intents: Field required"),
        ([SERVICE | {"intents": 3}], 2, "service 'Cars_1': intents: Input should be a valid list"),
        ([SERVICE | {"slots": ["day"]}], 2, "service 'Cars_1': slots.0: Input should be a valid dictionary"),
        ([SERVICE | {"slots": []}], 2, "service 'Cars_1': intent 'Rent': slot 'day' is missing"),
        (
            [SERVICE | {"intents": [*SERVICE["intents"], *SERVICE["intents"]]}],
            2,
            "intent 'Rent' is defined twice",
        ),
        (
            {"a": API, "b": API | {"input": [{"Name": "Day", "Type": "Hue"}]}},
            None,
            "API 'b', parameter 'Day': unknown type 'Hue'",
        ),
        ({"a": API, "b": {}}, None, "API 'b' lacks the lists"),
        ({"a": API, " ": API}, None, "an API without a name"),
        ({"a": {"input": [{"Type": "Integer"}], "required": []}}, 4, "API 'a': a parameter without a Name"),
        ('{"a": {"type": "object"},\n "a": {"type": "object"}}', 2, "'a' is given twice (first in line 1)"),
        (
            '{"a": {"type": "object",\n "properties": {"x": 5}}}',
            2,
            "tool 'a', parameter 'x': 5 is not a schema",
        ),
        ('{"a": {"type": "object"}, "b":\n 3}', 1, "tool 'b': 3 is not an object schema"),
        ('{"": {"type": "object"}}', 1, "a tool without a name"),
        ('[{"type": "object"},\n {"type": "object", "title": "b"}]', 1, "a tool without a name (name None)"),
        ('{"tools": [\n}', 2, "not JSON"),
        ("[]", None, "cannot tell what format"),
        ("{}", None, "cannot tell what format"),
        ("7", None, "cannot tell what format"),
    ],
)
def test_one_line_that_names_where(tmp_path: Path, value: Any, line: int | None, what: str) -> None:
    file = put(tmp_path, value)
    with pytest.raises(CatalogError) as caught:
        read(file)
    said = str(caught.value)
    assert said.startswith(f"{file}:{line}: " if line else str(file)), said
    assert what in said and "\n" not in said


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such file or folder"):
        read(tmp_path / "none.json")
    with pytest.raises(CatalogError, match="no such file or folder"):
        read(tmp_path / "none.json", "openai")
    with pytest.raises(CatalogError, match="cannot tell what format"):
        read(tmp_path)
    with pytest.raises(ValueError, match="format 'xml' is not one of auto, proactor"):
        read(tmp_path, "xml")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "python"])
def test_the_wrong_format_is_an_error_not_a_crash(tmp_path: Path, format: Format) -> None:
    for value in (
        [1],
        {"tools": 3},
        {"a": 3},
        "text",
        [[]],
        {"a": {"input": 3}},
        [{"service_name": 3}],
        None,
    ):
        with pytest.raises(CatalogError):
            read(put(tmp_path, value), format)


def test_too_deep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="nested too deeply"):
        read(put(tmp_path, "[" * 200_000 + "]" * 200_000), "openai")


words = st.sampled_from(
    [
        "type",
        "properties",
        "required",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$defs",
        "items",
        "name",
        "parameters",
        "function",
        "format",
    ]
)
atoms = st.sampled_from(
    [
        "string",
        "object",
        "array",
        "null",
        "date",
        "#",
        "#/$defs/a",
        "#/properties/a",
        "function",
        "",
        None,
        True,
        3,
        1.5,
    ]
)
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.just("a"), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.sampled_from(FORMATS[:5]))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_gives_tools_or_one_line(tmp_path: Path, value: Any, format: Format) -> None:
    file = put(tmp_path, value)
    for chosen in (format, "auto"):
        try:
            tools = read(file, chosen)
        except CatalogError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
        else:
            assert len(tools.catalog) > 0


@given(values, st.sampled_from([None, 1, 3]))
@settings(max_examples=80, deadline=None)
def test_every_value_has_its_line(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    expected: list[tuple[str | int, ...]] = []

    def walk(inner: Any, place: tuple[str | int, ...]) -> None:
        for step, one in (
            inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        ):
            expected.append((*place, step))
            walk(one, (*place, step))

    walk(value, ())
    places = list(positions(text))
    assert [place for place, _ in places] == expected
    lines = text.split("\n")
    for place, line in places:
        if isinstance(place[-1], str):
            assert json.dumps(place[-1]) in lines[line - 1]
    if indent:
        assert len({line for _, line in places}) == len(places)  # indented JSON has one of them a line


def test_lines_between_values_count() -> None:
    assert list(positions('{\n\n"a\\n": [\n\n\n1, {}]}')) == [(("a\n",), 3), (("a\n", 0), 6), (("a\n", 1), 6)]
