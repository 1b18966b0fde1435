"""Constraints that are refused: one line with the prompt, and the place of the fault in a schema."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import Constraint, Engine, EngineError, Sampling
from proactor.engine.schema_faults import place_of
from tests.engine.engines import load, prompts

pytest.importorskip("llguidance")

ANY = Constraint(regex="[ab]+")


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Engine:
    return load(chat_folder, kv_tokens=4096)


@pytest.mark.parametrize(
    ("constraint", "error"),
    [
        (
            {"json_schema": {"properties": {"a/b": {"items": {"not": {}}}}}},
            r'at /properties/a~1b/items: .*\["not"\]',
        ),
        ({"json_schema": {"uniqueItems": True}}, "at its root: .*uniqueItems"),
        ({"json_schema": {"$defs": {"x": {"if": {}}}, "$ref": "#/$defs/x"}}, r"at /\$defs/x: .*if"),
        ({"json_schema": {"$ref": "#"}}, "no text fits"),
        ({"json_schema": False}, "json_schema, at its root: "),
        ({"json_schema": {"pattern": "(?=a)", "type": "string"}}, "look-around"),
        ({"regex": "(a"}, "regex: .*unclosed group"),
        ({"grammar": "start: unknown"}, 'grammar: .*unknown name: "unknown"'),
    ],
)
def test_refused_by_name(engine: Engine, constraint: dict[str, Any], error: str) -> None:
    settings = [Sampling(), Sampling(constraint=Constraint(**constraint))]
    with pytest.raises(EngineError, match=f"^prompt 1: constraint: .*{error}") as caught:
        engine.sample(prompts(2), settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, "give one of json_schema, regex, grammar, not none"),
        ({"regex": "a", "grammar": "b"}, "not regex and grammar"),
        ({"json_schema": 5}, "json_schema: should be a JSON schema"),
        ({"json_schema": "{"}, "json_schema: should be a schema as JSON"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema: cannot be written as JSON"),
        ({"json_schema": {"maximum": math.nan}}, "json_schema: cannot be written as JSON"),
        ({"schema": {}}, "unknown option 'schema'"),
    ],
)
def test_impossible_values(values: dict[str, Any], error: str) -> None:
    with pytest.raises(EngineError, match=error) as caught:
        Constraint(**values)
    assert "\n" not in str(caught.value)


def test_without_an_end_there_is_no_constraint(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"^prompt 0: constraint: needs an end token"):
        engine.sample([[1]], Sampling(constraint=ANY, ignore_eos=True))


def test_without_a_fast_tokenizer_there_is_no_constraint(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"^prompt 0: constraint: needs a fast tokenizer"):
        load(folder).sample([[1]], Sampling(constraint=ANY))


def test_without_the_library_it_says_what_to_install(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EngineError, match=r"^prompt 0: constraint: .*pip install 'proactor\[constrain\]'$"):
        engine.sample([[1]], Sampling(constraint=Constraint(regex="q")))


def test_places() -> None:
    def fault(schema: Any) -> str:
        return "bad" if "bad" in json.dumps(schema) else ""

    nested = {"anyOf": [{}, {"items": {"properties": {"x~y/z": {"bad": 1}}}}], "$defs": {"d": {}}}
    assert place_of(nested, fault) == "/anyOf/1/items/properties/x~0y~1z"
    assert place_of({"bad": 1, "properties": {"a": {}}}, fault) == ""
    assert place_of(True, fault) == ""
    wide = {"properties": {f"p{i}": {} for i in range(10**4)} | {"last": {"bad": 1}}}
    assert place_of(wide, fault) == ""  # so many parts are not tried
