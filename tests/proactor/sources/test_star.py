"""STAR's release: events become turns and queries, and the same dialogue as the compact file has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.files import SourceError
from proactor.sources import load

RIDE = {
    "input": [
        {"Name": "From", "Type": "ShortString", "ReadableName": "From"},
        {"Name": "Price", "Type": "Integer", "ReadableName": "Price"},
        {"Name": "RequestType", "Type": "RequestType", "Categories": ["Check", "Book"], "ReadableName": ""},
    ],
    "required": ["From", "RequestType"],
}
Event = dict[str, Any]


def say(agent: str, text: str, action: str = "utter") -> Event:
    return {"Action": action, "Agent": agent, "Text": text, "UnixTime": 1}


def query(**given: str) -> Event:
    constraints = [{name: raw} for name, raw in given.items()]
    return {
        "Action": "query",
        "Agent": "Wizard",
        "APIName": "ride",
        "Constraints": constraints,
        "UnixTime": 1,
    }


EVENTS = [
    say("UserGuide", "act confused", "instruct"),
    say("User", "a ride from Main Street"),
    say("Wizard", "let me see", "request_suggestions"),
    query(From='api.is_equal_to("Main Street")', Price="api.is_at_most(9)", RequestType='"Check"'),
    say("Wizard", "there is one, shall I book?", "pick_suggestion"),
    say("User", "yes"),
    query(From='"Main Street"', RequestType='"Book"'),
    say("Wizard", "done"),
]


def write(folder: Path, *events: Event, name: int = 1, level: str = "Complete") -> Path:
    record = {
        "DialogueID": name,
        "CompletionLevel": level,
        "Events": list(events),
        "Scenario": {"Domains": ["ride"], "WizardCapabilities": [{"Domain": "ride", "Task": "ride"}]},
    }
    (folder / "dialogues").mkdir(exist_ok=True)
    (folder / "apis" / "apis").mkdir(parents=True, exist_ok=True)
    (folder / "apis" / "apis" / "ride.json").write_text(json.dumps(RIDE))
    (folder / "dialogues" / f"{name}.json").write_text(json.dumps(record))
    return folder


def test_release_gives_the_same(tmp_path: Path) -> None:
    corpus = load("star", write(tmp_path, *EVENTS))
    (dialogue,) = corpus.dialogues
    assert [(t.speaker, t.text) for t in dialogue.turns] == [
        ("user", "a ride from Main Street"),
        ("agent", "there is one, shall I book?"),
        ("user", "yes"),
        ("agent", "done"),
    ]
    check, book = dialogue.references
    assert (check.name, check.params, check.ready) == (
        "ride.check",
        {"From": "Main Street", "Price": "at most 9"},
        (1, 1),
    )
    assert (book.name, book.ready, book.coverage) == ("ride.book", (3, 3), (1, 3))
    common = {"method": "ride", "unmatched": [], "untraced_required": [], "value_turns": {"From": 0}}
    actions = [
        common
        | {
            "request": "Check",
            "parameters": {"From": '"Main Street"', "Price": "api.is_at_most(9)", "RequestType": '"Check"'},
            "last_visible_turn": 0,
            "depends_on_result_at_turn": None,
            "window": {"earliest": 0, "latest": 0},
        },
        common
        | {
            "request": "Book",
            "parameters": {"From": '"Main Street"', "RequestType": '"Book"'},
            "last_visible_turn": 2,
            "depends_on_result_at_turn": 0,
            "window": {"earliest": 0, "latest": 2},
        },
    ]
    turns = [{"speaker": "AGENT" if t.speaker == "agent" else "USER", "text": t.text} for t in dialogue.turns]
    record = {
        "dialogue_id": "star/1",
        "domains": ["ride"],
        "tasks": ["ride"],
        "turns": turns,
        "actions": actions,
    }
    (tmp_path / "compact").mkdir()
    (tmp_path / "compact" / "apis.json").write_text(json.dumps({"ride": RIDE}))
    (tmp_path / "compact" / "star.jsonl").write_text(json.dumps(record) + "\n")
    assert load("star", tmp_path / "compact").dialogues == corpus.dialogues
    assert load("star", tmp_path / "dialogues" / "1.json").dialogues == corpus.dialogues


def test_values_that_are_not_there(tmp_path: Path) -> None:
    unmatched = [
        say("User", "a ride"),
        query(From='"Oak Street"', RequestType='"Check"'),
        say("Wizard", "no"),
    ]
    untraced = [say("User", "a ride"), query(Price="9", RequestType='"Check"'), say("Wizard", "no")]
    (first,) = load("star", write(tmp_path, *unmatched)).dialogues[0].references
    (second,) = load("star", write(tmp_path, *untraced)).dialogues[0].references
    # an API cannot be called right without a required value, said or not
    assert (first.ready, first.null_reason) == (None, "untraced") and (second.ready, second.null_reason) == (
        None,
        "untraced",
    )


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    write(tmp_path, query(From='"x"', RequestType='"Check"'), say("User", " "), *EVENTS)
    write(tmp_path, *EVENTS, name=2, level="Incomplete")
    corpus = load("star", tmp_path)
    assert len(corpus) == 1 and len(corpus.dialogues[0].references) == 2
    assert [corpus.counters[k] for k in ("incomplete", "query_before_user", "empty_turn")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{}", "1: no DialogueID"),
        ("{", "1: not JSON"),
        ('{"DialogueID": 1, "CompletionLevel": "Complete"}', " "),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, what: str) -> None:
    write(tmp_path, *EVENTS)
    (tmp_path / "dialogues" / "1.json").write_text(content)
    with pytest.raises(SourceError, match=rf"dialogues/1\.json:{what}"):
        load("star", tmp_path)
