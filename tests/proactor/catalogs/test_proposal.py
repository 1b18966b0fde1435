"""Proposals for tools without an effect, rule by rule, and against corpora whose tools state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.catalogs import propose
from proactor.dialogue.catalog import Catalog, Tool
from proactor.sources import load


def one(name: str, description: str = "", **said: Any) -> tuple[str, bool, str]:
    (suggestion,) = propose(Catalog(tools=(Tool(name=name, description=description, **said),))).suggestions
    return suggestion.effect, suggestion.confirm, suggestion.reason


@pytest.mark.parametrize(
    ("name", "effect", "confirm", "word"),
    [
        ("get_weather", "read", False, "'get' in the name"),
        ("searchFlights", "read", False, "'search' in the name"),
        ("Payments_1.list-cards", "read", False, "'list' in the name"),
        ("order_status", "read", False, "'status' ends the name"),
        ("booking_details", "read", False, "'details' ends the name"),
        ("update_status", "write", False, "'update' in the name"),
        ("add_alarm", "write", False, "'add' in the name"),
        ("book_table", "write", True, "'book' in the name"),
        ("ride.book", "write", True, "'book' in the name"),
        ("HTTPReserveRoom", "write", True, "'reserve' in the name"),
        ("create_booking", "write", True, "'booking' in the name"),
        ("create_note", "write", False, "'create' in the name"),
        ("make_payment", "irreversible", True, "'payment' in the name"),
        ("transfer_money", "irreversible", True, "'transfer' in the name"),
        ("cancel_booking", "irreversible", True, "'cancel' in the name"),
        ("delete_history", "irreversible", True, "'delete' in the name"),
        ("check_seats", "read", False, "'check' in the name"),
        ("check_in", "write", True, "'check in' in the name"),
        ("hotel_check_out", "irreversible", True, "'check out' in the name"),
        ("look_up_song", "read", False, "'look up' in the name"),
    ],
)
def test_names(name: str, effect: str, confirm: bool, word: str) -> None:
    assert one(name) == (effect, confirm, word)


@pytest.mark.parametrize(
    ("name", "description", "effect", "confirm"),
    [
        ("songs", "Searches a library. Then plays it", "read", False),
        ("taxi", "Books a taxi", "write", True),
        ("account", "Returns the balance", "read", False),
        ("reminder", "Adding reminders", "write", False),
        ("get_ride", "Book a cab to anywhere", "write", True),
        ("get_order", "Order details by number", "read", False),
        ("archive", "Stores a file. This cannot be undone.", "irreversible", True),
        ("update_seat", "Changes the seat; non-refundable", "irreversible", True),
        ("get_notes", "Reads what is permanently kept", "read", False),
        ("update_seat", "Changes the seat after the user agrees", "write", True),
        ("get_seat", "Reads the seat after the user agrees", "read", False),
    ],
)
def test_descriptions(name: str, description: str, effect: str, confirm: bool) -> None:
    assert one(name, description)[:2] == (effect, confirm)


def test_what_no_rule_knows_is_a_guess() -> None:
    proposal = propose(
        Catalog(tools=(Tool(name="预订"), Tool(name="frob", description="Frobs."), Tool(name="get")))
    )
    assert [s.guess for s in proposal.suggestions] == [True, True, False]
    assert (
        proposal.suggestions[0].reason == "no rule speaks: a guess"
        and proposal.suggestions[0].effect == "write"
    )


def test_what_is_said_stays() -> None:
    assert one("delete_all", effect="read") == ("read", False, "effect given; 'delete' in the name")
    assert one("get_all", effect="irreversible")[:2] == ("irreversible", True)
    assert one("book_room", effect="write")[:2] == ("write", True)
    assert one("pay", confirm=False) == ("irreversible", False, "confirm given; 'pay' in the name")
    assert one("pay", effect="write", confirm=False) == ("write", False, "given")
    assert one("keep", "it cannot be undone", effect="write")[0] == "write"
    proposal = propose(
        Catalog(tools=(Tool(name="pay", effect="write"), Tool(name="go", effect="read", confirm=False)))
    )
    assert [s.proposed_fields for s in proposal.suggestions] == [("confirm",), ()] and len(
        proposal.open_suggestions
    ) == 1


@given(
    st.lists(
        st.builds(Tool, name=st.text(min_size=1).filter(str.strip), description=st.text()),
        unique_by=lambda t: t.name,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_second_proposal_changes_nothing(tools: list[Tool]) -> None:
    first = propose(Catalog(tools=tuple(tools)))
    second = propose(first.catalog)
    assert second.catalog == first.catalog and not second.open_suggestions
    assert [t.model_copy(update={"effect": "write", "confirm": False}) for t in first.catalog.tools] == tools


@pytest.mark.parametrize(("name", "effects", "confirms"), [("sgd", 0.95, 0.9), ("star", 0.9, 0.9)])
def test_against_corpora_that_say_it(data_dir: Path, name: str, effects: float, confirms: float) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    said = load(name, data_dir / name, limit=0).catalog
    bare = Catalog(tools=tuple(Tool(name=t.name, description=t.description) for t in said.tools))
    proposed = propose(bare).catalog
    assert sum(
        a.effect == b.effect for a, b in zip(said.tools, proposed.tools, strict=True)
    ) >= effects * len(said)
    assert sum(
        a.confirm == b.confirm for a, b in zip(said.tools, proposed.tools, strict=True)
    ) >= confirms * len(said)
