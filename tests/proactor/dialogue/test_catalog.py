from __future__ import annotations

import pytest
from pydantic import ValidationError

from proactor.dialogue.catalog import Catalog, Parameter, Tool
from tests.proactor.dialogues import users

BOOK = Tool(
    name="book",
    description="Book a table.",
    confirm=True,
    parameters=(
        Parameter(name="day", type="date"),
        Parameter(name="kind", type="enum", values=("in", "out"), required=False),
    ),
)
LOOK = Tool(name="look", effect="read")
CATALOG = Catalog(tools=(BOOK, LOOK))


def test_lookup_by_name() -> None:
    assert CATALOG["book"] is BOOK and CATALOG.get("look") is LOOK and CATALOG.get("fly") is None
    assert "book" in CATALOG and "fly" not in CATALOG and len(CATALOG) == 2
    assert BOOK.required == ("day",)
    with pytest.raises(KeyError, match="fly"):
        CATALOG["fly"]


def test_subset_keeps_the_order_asked_for() -> None:
    assert CATALOG.subset(["look", "book"]).names == ("look", "book")
    with pytest.raises(KeyError, match="fly"):
        CATALOG.subset(["fly"])


def test_a_dialogue_is_offered_the_tools_it_names_or_all() -> None:
    assert CATALOG.offered_in(users(1)).names == CATALOG.names
    assert CATALOG.offered_in(users(1).model_copy(update={"tools": ("look",)})).names == ("look",)


def test_rendering() -> None:
    assert CATALOG.render("compact") == "book(day, kind?) ask\nlook()"
    assert CATALOG.render().splitlines() == [
        "- book: Book a table. [write, ask first]",
        "    day (date)",
        "    kind (enum, optional) one of: in, out",
        "- look: look [read]",
    ]
    assert CATALOG.render("{% for t in tools %}<{{ t.name }}>{% endfor %}") == "<book><look>"


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Catalog(tools=(BOOK, BOOK)), "'book' is in the catalog twice"),
        (lambda: Tool(name=""), "name"),
        (lambda: Tool(name="  "), "without a name"),
        (
            lambda: Tool(name="a", parameters=(Parameter(name="x"), Parameter(name="x"))),
            "parameter 'x' twice",
        ),
        (lambda: Parameter(name="x", type="enum"), "enum without values"),
        (lambda: Parameter(name="x", type="colour"), "type"),
        (lambda: Tool(name="a", efect="read"), "efect"),
    ],
)
def test_what_is_refused(build: object, what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        build()  # type: ignore[operator]
