"""Taskmaster-4 on orders written here: windows of calls, the end of an order, and ids that are never said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue
from proactor.files import SourceError
from proactor.sources import load


def call(
    number: int, name: str, request: str | None = None, response: str = '{"success":true}'
) -> list[dict[str, str]]:
    notes = [{"name": "api_call", "value": name, "context": f"api_call_{number}"}]
    if request is not None:
        notes.append({"name": "request", "value": request, "context": f"api_call_{number}"})
    notes.append({"name": "api_response", "value": name, "context": f"api_response_{number}"})
    return [*notes, {"name": "response", "value": response, "context": f"api_response_{number}"}]


MENU = '{"menu_items":[{"menu_item_id":"latte-01","name":"Caffe Latte"}]}'
OAT = '"attributes": [{"attribute_id": "milk-options", "option":"Oat Milk"}]'
ORDER = (
    call(0, "get_menu_items", '{"query": "Latte"}', MENU)
    + call(
        1, "add_order_item", '{"menu_item_id": "latte-01","quantity": "1",' + OAT + "}", '{"order_id":"7"}'
    )
    + call(2, "get_order_details", '{"order_id": "7"}', "{}")
)
Utterance = tuple[str, str, list[dict[str, str]]]


def order(*utterances: Utterance, name: str = "dlg-1") -> dict[str, Any]:
    return {
        "conversation_id": name,
        "vertical": "Coffee",
        "scenario": "",
        "instructions": None,
        "utterances": [
            {"index": i, "speaker": who, "text": text, "segments": [], "annotations": notes}
            for i, (who, text, notes) in enumerate(utterances)
        ],
    }


def read(folder: Path, *utterances: Utterance) -> tuple[Dialogue, dict[str, int]]:
    (folder / "dev.jsonl").write_text(json.dumps(order(*utterances)) + "\n")
    corpus = load("taskmaster4", folder)
    return corpus.dialogues[0], corpus.counters


START: Utterance = ("user", "a caffe latte with oat milk", ORDER)
CHECK: Utterance = ("assistant", "is the order right?", [])


def test_an_order(tmp_path: Path) -> None:
    dialogue, counters = read(
        tmp_path, START, CHECK, ("user", "yes", call(3, "finish_order", '{"order_id": "7"}'))
    )
    menu, add, details, finish = dialogue.references
    assert (menu.params, menu.ready) == ({"query": "Latte"}, (1, 1))
    # the id goes by the name that the answer gave it; the default quantity and the order's id are left out
    assert add.params == {"item": "Caffe Latte", "milk_options": "Oat Milk"} and add.accepts(
        "milk_options", "oat"
    )
    assert (details.params, details.ready) == ({}, (1, 1))
    # nobody may send the order off before the user has said yes
    assert (finish.coverage, finish.ready, finish.observed_trigger) == ((1, 3), (3, 3), 3)
    assert counters["id_left_out"] == 2 and counters["default_quantity"] == 1
    assert (dialogue.id, dialogue.domain) == ("taskmaster4/dlg-1", "coffee")
    catalog = load("taskmaster4", tmp_path).catalog
    assert catalog["finish_order"].confirm and catalog["finish_order"].effect == "irreversible"
    assert catalog["get_menu_items"].effect == "read" and not catalog["add_order_item"].confirm


def test_sending_off_unasked_is_unknown(tmp_path: Path) -> None:
    dialogue, _ = read(tmp_path, ("user", "a latte", ORDER + call(3, "finish_order", "{}")))
    finish = dialogue.references[-1]
    assert (finish.ready, finish.null_reason, finish.coverage) == (None, "no_assent", (1, 1))


def test_later_calls_open_with_their_values(tmp_path: Path) -> None:
    decaf = '{"order_item_id": "9","attributes": [{"attribute_id": "caffeine ", "option":"Decaf"}]}'
    early: Utterance = ("user", "a decaf latte", ORDER)
    dialogue, _ = read(tmp_path, early, CHECK, ("user", "no", call(3, "update_order_item", decaf)))
    change = dialogue.references[-1]
    assert (change.params, change.ready, change.coverage) == ({"caffeine": "Decaf"}, (1, 3), (1, 3))
    dialogue, counters = read(tmp_path, START, CHECK, ("user", "no", call(3, "update_order_item", decaf)))
    change = dialogue.references[-1]
    assert (change.ready, change.null_reason, change.coverage) == (None, "unmatched", (3, 3))
    assert counters["null_unmatched"] == 1


def test_requests_that_are_not_json(tmp_path: Path) -> None:
    twice = '{"menu_item_id": ""hot-cocoa-5""}'
    dialogue, counters = read(tmp_path, ("user", "hot cocoa", call(0, "add_order_item", twice)))
    assert dialogue.references[0].params == {"item": "hot cocoa"} and counters["json_mended"] == 1
    dialogue, counters = read(tmp_path, ("user", "hot cocoa", call(0, "add_order_item", "{cocoa}")))
    assert (dialogue.references[0].ready, dialogue.references[0].null_reason) == (None, "unreadable_request")
    assert counters["unreadable_request"] == 1


def test_release_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "raw" / "data").mkdir(parents=True)
    expected, _ = read(tmp_path / "compact", START, CHECK, ("user", "yes", call(3, "finish_order", "{}")))
    record = order(START, CHECK, ("user", "yes", call(3, "finish_order", "{}")))
    file = tmp_path / "raw" / "data" / "data_00.json"
    file.write_text(json.dumps([record]))
    assert load("taskmaster4", tmp_path / "raw").dialogues == (expected,)
    for content, what in [
        ([record, record], "dialogue 2: .*appears twice"),
        ([{"utterances": []}], "dialogue 1: no conversation_id"),
        ({}, "1: not a list"),
        ([order(("user", "x", call(0, "fly")))], "dialogue 1: .*API 'fly' that is not known"),
        ([order(("assistant", "x", call(0, "show_menu")))], "dialogue 1: .*before the user spoke"),
    ]:
        file.write_text(json.dumps(content))
        with pytest.raises(SourceError, match=f"data_00.json:{what}"):
            load("taskmaster4", file)
