"""STAR's compact file: windows of queries, values, and what is dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Reference
from proactor.sources import load
from proactor.sources.star import plain_value

APIS = {
    "ride": {
        "input": [
            {"Name": "From", "Type": "ShortString", "ReadableName": "From"},
            {"Name": "Day", "Type": "Categorical", "Categories": ["Friday"], "ReadableName": "Day"},
            {
                "Name": "RequestType",
                "Type": "RequestType",
                "Categories": ["Check", "Book"],
                "ReadableName": "",
            },
        ],
        "required": ["From", "Day", "RequestType"],
    },
    "weather": {"input": [{"Name": "Day", "Type": "ShortString"}], "required": ["Day"]},
}


def query(method: str, last: int, window: tuple[int, int] | None, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "request": None,
        "parameters": {"Day": '"Friday"'},
        "value_turns": {"Day": 2},
        "unmatched": [],
        "untraced_required": [],
        "last_visible_turn": last,
        "depends_on_result_at_turn": None,
        "window": window and {"earliest": window[0], "latest": window[1]},
    } | fields


def star(
    tmp_path: Path, *actions: dict[str, Any], **opts: Any
) -> tuple[tuple[Reference, ...], dict[str, int]]:
    texts = ["hi", "where from?", "main street on friday", "ok", "fine", "it is possible", "do it", "done"]
    turns = [{"speaker": "AGENT" if i % 2 else "USER", "text": t} for i, t in enumerate(texts)]
    record = {
        "dialogue_id": "star/1",
        "domains": ["ride", None],
        "tasks": ["ride"],
        "turns": turns,
        "actions": actions,
    }
    (tmp_path / "apis.json").write_text(json.dumps(APIS))
    (tmp_path / "star.jsonl").write_text(json.dumps(record) + "\n")
    corpus = load("star", tmp_path, **opts)
    assert corpus.catalog["ride.book"].confirm and corpus.catalog["ride.check"].effect == "read"
    return corpus.dialogues[0].references, corpus.counters


def test_star_windows(tmp_path: Path) -> None:
    check, book, untraced, unmatched, repeat = star(
        tmp_path,
        query("ride", 4, (1, 4), request="Check", parameters={"Day": '"Friday"', "RequestType": '"Check"'}),
        query("ride", 6, (4, 6), request="Book"),
        query("weather", 2, (2, 2), untraced_required=["Day"]),
        query("weather", 4, None, unmatched=["Day"]),
        query("weather", 6, (2, 6), depends_on_result_at_turn=2),
    )[0]
    assert (check.name, check.params, check.coverage, check.ready) == (
        "ride.check",
        {"Day": "Friday"},
        (3, 5),
        (3, 5),
    )
    assert (book.name, book.ready, book.coverage, book.values_seen) == ("ride.book", (7, 7), (3, 7), 3)
    assert (untraced.ready, untraced.null_reason, untraced.observed_trigger) == (None, "untraced", 3)
    assert (unmatched.ready, unmatched.null_reason) == (None, "unmatched")
    assert (repeat.ready, repeat.coverage) == ((7, 7), (7, 7))
    (offered,) = star(tmp_path, query("weather", 4, (3, 4)))[0]
    assert offered.ready == (5, 5)  # opened by the agent's turn 4: decided after the user's next


def test_star_counts_what_it_drops(tmp_path: Path) -> None:
    twice = query("weather", 2, (2, 2), parameters={"Day": '"Friday"', "Place": "null"})
    references, counters = star(tmp_path, twice, twice)
    assert len(references) == 1 and counters["duplicate_call"] == 1 and counters["empty_value"] == 1
    untraced = query("ride", 6, (4, 6), request="Book", untraced_required=["From"])
    assert star(tmp_path, untraced)[0][0].ready is None
    assert star(tmp_path, untraced, trust_bookings=True)[0][0].ready == (7, 7)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ('"5 pm"', "5 pm"),
        ('" Broadway and Main"', "Broadway and Main"),
        ("3", "3"),
        ("True", "True"),
        ("null", None),
        ("", None),
        ("api.is_at_most(900)", "at most 900"),
        ('api.is_one_of(["2 pm"])', "2 pm"),
        ('api.is_one_of(["A","B"])', "A or B"),
        ('api.is_not("Thai")', "not Thai"),
        ("api.is_one_of(null)", None),
        ('["8 pm"]', "8 pm"),
        ("bare words", "bare words"),
    ],
)
def test_star_values(raw: str, plain: str | None) -> None:
    assert plain_value(raw) == plain
