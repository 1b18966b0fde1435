"""Functions of a Python module as tools."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from proactor.catalogs import read, read_catalog
from proactor.dialogue.catalog import Parameter
from tests.proactor.catalogs.definitions import put

MODULE = '''
from __future__ import annotations
from dataclasses import dataclass
from datetime import date
from enum import Enum
from json import dumps
from typing import Annotated, Literal
from helper import KNOWN

class Kind(Enum):
    IN = "in"
    OUT = "out"

@dataclass
class Place:
    street: str
    zip: int | None = None

def book(
    day: date, kind: Kind, place: Place, size: Annotated[int, "how many"], note: str | None = None, *rest: str
) -> str:
    """Book a table.

    Args:
        day (date): which day,
            as said
        place: where

    Returns:
        what it said
    """

async def find(query: Literal["a", "b"], loose=1):
    """Find one.

    :param query: what to look for
    """

def drop_all(): ...
drop_all.effect = "irreversible"
drop_all.confirm = False
alias = find
def _hidden(x: int): ...
'''


def test_a_python_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "KNOWN = 1", "helper.py")
    file = put(tmp_path, MODULE, "mytools.py")
    reading = read(file, trust_code=True)
    assert reading.format == "python" and reading.catalog.names == ("book", "find", "drop_all")
    book, search, drop = reading.catalog.tools
    assert book.description == "Book a table." and search.description == "Find one."
    assert book.parameters == (
        Parameter(name="day", type="date", description="which day, as said"),
        Parameter(name="kind", type="enum", values=("in", "out")),
        Parameter(name="place.street"),
        Parameter(name="place.zip", type="integer", required=False),
        Parameter(name="size", type="integer", description="how many"),
        Parameter(name="note", required=False),
    )
    assert [(p.type, p.required, p.description) for p in search.parameters] == [
        ("enum", True, "what to look for"),
        ("string", False, ""),
    ]
    assert (drop.effect, drop.confirm) == ("irreversible", False)
    assert reading.counters == {"flattened": 1, "variadic_left_out": 1, "untyped_as_text": 1}
    assert read(f"module:{file}", trust_code=True).catalog == reading.catalog
    assert str(tmp_path) not in sys.path
    monkeypatch.chdir(tmp_path)
    assert read("module:mytools", trust_code=True).catalog == reading.catalog


def test_only_what_all_lists(tmp_path: Path) -> None:
    module = "__all__ = ['a']\ndef a(): ...\ndef b(): ...\n"
    assert read_catalog(put(tmp_path, module, "listed.py"), trust_code=True).names == ("a",)
