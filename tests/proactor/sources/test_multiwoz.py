"""MultiWOZ on dialogues written here: one dialogue in three formats, and the window of a booking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue
from proactor.files import SourceError
from proactor.sources import load

TURNS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    # text, acts, and the hotel's state after a user turn
    ("a hotel in the east, for 2 people", {}, {"area": "east", "people": "2"}),
    (
        "the Acorn is nice. Which day?",
        {"Hotel-Recommend": [["Name", "Acorn"]], "Booking-Request": [["Day", "?"]]},
        {},
    ),
    (
        "monday, 3 nights at the acorn",
        {},
        {"area": "east", "people": "2", "name": "acorn", "day": "monday", "stay": "3"},
    ),
    ("Shall I book it?", {"Hotel-OfferBook": [["none", "none"]]}, {}),
    ("yes", {}, {"area": "east", "people": "2", "name": "acorn", "day": "monday", "stay": "3"}),
    ("Done, the reference is XYZ", {"Booking-Book": [["Ref", "XYZ"]]}, {}),
    ("thanks", {}, {"area": "east", "people": "2", "name": "acorn", "day": "monday", "stay": "3"}),
    ("bye", {}, {}),
]
BOOK = ("people", "day", "stay")


def compact() -> dict[str, Any]:
    turns = [
        {"speaker": "SYSTEM" if i % 2 else "USER", "text": t, "acts": a} for i, (t, a, _) in enumerate(TURNS)
    ]
    action = {
        "service": "hotel",
        "method": "book_hotel",
        "call_turn": 5,
        "result": {},
        "parameters": {"area": "east", "name": "acorn", "people": "2", "day": "monday", "stay": "3"},
        "window": {"earliest": 2, "latest": 4},
        "evidence": {"value_turns": {"people": 0, "day": 2, "stay": 2, "name": 2}},
    }
    goal = {"hotel": {"info": {}, "book": {}}, "taxi": {}}
    return {"dialogue_id": "multiwoz/T1", "goal": goal, "turns": turns, "actions": [action]}


def release21() -> dict[str, Any]:
    log: list[dict[str, Any]] = []
    for i, (text, acts, _) in enumerate(TURNS):
        metadata: dict[str, Any] = {}
        if i % 2:
            state = TURNS[i - 1][2]
            book = {slot: state.get(slot, "") for slot in BOOK}
            semi = {slot: state.get(slot, "not mentioned") for slot in ("area", "name", "stars")}
            booked = [{"name": "acorn", "reference": "XYZ"}] if i >= 5 else []
            metadata = {"hotel": {"semi": semi, "book": book | {"booked": booked}}}
        log.append({"text": text, "metadata": metadata, "dialog_act": acts})
    return {
        "T1.json": {"goal": {"hotel": {"info": {}, "book": {}}, "taxi": {}, "message": ["…"]}, "log": log}
    }


def release22() -> tuple[list[Any], dict[str, Any]]:
    turns = []
    for i, (text, _, state) in enumerate(TURNS):
        slots = {f"hotel-{'book' if slot in BOOK else ''}{slot}": [value] for slot, value in state.items()}
        frame = {
            "service": "hotel",
            "slots": [],
            "actions": [],
            "state": {"active_intent": "book_hotel", "requested_slots": [], "slot_values": slots},
        }
        frames = [] if i % 2 else [frame]
        turns.append(
            {"turn_id": str(i), "speaker": "SYSTEM" if i % 2 else "USER", "utterance": text, "frames": frames}
        )
    acts = {"T1.json": {str(i): {"dialog_act": a, "span_info": []} for i, (_, a, _) in enumerate(TURNS)}}
    return [{"dialogue_id": "T1.json", "services": ["hotel"], "turns": turns}], acts


def read(folder: Path, record: dict[str, Any]) -> tuple[Dialogue, dict[str, int]]:
    (folder / "val.jsonl").write_text(json.dumps(record) + "\n")
    corpus = load("multiwoz", folder)
    return corpus.dialogues[0], corpus.counters


def test_window_opens_with_the_assent(tmp_path: Path) -> None:
    dialogue, counters = read(tmp_path, compact())
    (booking,) = dialogue.references
    # all values were there at turn 3; the agent's offer was answered at turn 5
    assert (booking.coverage, booking.ready, booking.observed_trigger) == ((1, 5), (3, 5), 5)
    assert counters["opened_by_assent"] == 0  # turn 3 answers the agent's request for the day
    record = compact()
    record["turns"][1]["acts"] = {}
    (booking,) = read(tmp_path, record)[0].references
    assert (booking.coverage, booking.ready) == ((1, 5), (5, 5))
    assert booking.value_turns == {"area": 1, "name": 3, "people": 1, "day": 3, "stay": 3}
    tool = load("multiwoz", tmp_path).catalog["book_hotel"]
    assert tool.confirm and tool.effect == "write" and tool.required == ("people", "day", "stay")
    assert dialogue.domain == "hotel" and dialogue.tools == (
        "book_hotel",
        "book_restaurant",
        "book_train",
        "book_taxi",
    )


def test_asking_for_the_booking_is_assent(tmp_path: Path) -> None:
    record = compact()
    record["turns"][1]["acts"] = {}
    record["turns"][2]["text"] = "please book the acorn for monday, 3 nights"
    assert read(tmp_path, record)[0].references[0].ready == (3, 5)


def test_a_failed_attempt_closes_what_was_open(tmp_path: Path) -> None:
    record = compact()
    record["turns"][3]["acts"] = {"Booking-NoBook": [["none", "none"]]}
    dialogue, counters = read(tmp_path, record)
    assert (dialogue.references[0].ready, dialogue.references[0].coverage) == ((5, 5), (1, 5))
    assert counters["opened_by_failure"] == 1


def test_a_booking_that_was_reported_later_is_at_its_own_turn(tmp_path: Path) -> None:
    record = compact()
    record["turns"][3]["acts"] = {"Booking-Book": [["none", "none"]]}
    dialogue, counters = read(tmp_path, record)
    assert (dialogue.references[0].ready, dialogue.references[0].observed_trigger) == ((3, 3), 3)
    assert counters["booked_earlier"] == 1


def test_untracked_booking_is_unknown(tmp_path: Path) -> None:
    record = compact()
    record["actions"][0]["evidence"]["value_turns"] = {}
    (booking,) = read(tmp_path, record)[0].references
    assert (booking.ready, booking.null_reason, booking.coverage) == (None, "untracked", (5, 5))


@pytest.mark.parametrize("form", ["2.1", "2.2"])
def test_releases_give_the_same(tmp_path: Path, form: str) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "raw" / "dev").mkdir(parents=True)
    expected, _ = read(tmp_path / "compact", compact())
    if form == "2.1":
        (tmp_path / "raw" / "data.json").write_text(json.dumps(release21()))
    else:
        dialogues, acts = release22()
        (tmp_path / "raw" / "dev" / "dialogues_001.json").write_text(json.dumps(dialogues))
        (tmp_path / "raw" / "dialog_acts.json").write_text(json.dumps(acts))
    assert load("multiwoz", tmp_path / "raw").dialogues == (expected,)


def test_bad_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    for content, what in [
        ("[1]", "dialogue 1: not an object"),
        ("3", "1: neither dialogues by id"),
        ('{"T1.json": {"goal": {}}}', "T1.json: key 'turns' is missing"),
        ('{"T1.json": 3}', "T1.json: not an object"),
        ('{"T1.json": {"goal": {}, "log": []}}', "T1.json: .*no turns"),
    ]:
        file.write_text(content)
        (tmp_path / "dialog_acts.json").write_text("{}")
        with pytest.raises(SourceError, match=f"data.json:{what}"):
            load("multiwoz", tmp_path)
    (tmp_path / "dialog_acts.json").unlink()
    file.write_text("[]")
    with pytest.raises(SourceError, match=r"dialog_acts\.json"):
        load("multiwoz", tmp_path)
