"""MultiWOZ's own releases in the compact form.

- Releases 2.0 and 2.1, data.json: {id: {goal, log: [{text, metadata, dialog_act}]}}. The state of a user turn
  is the metadata of the system turn that follows; 2.0 has no acts.
- Release 2.2: dialogues_*.json in the form of SGD, and dialog_acts.json. Its bookings are read from the acts
  Booking-Book, Train-OfferBooked and Taxi-Inform (with a phone).

Neither release was at hand: the forms are taken from the release's notes and its own converter [CODE] and are
tested on files written by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from proactor.files import SourceError, find_files, read_json
from proactor.sources import multiwoz_records, records
from proactor.sources.base import Record


class BookingSlots(NamedTuple):
    """Slots of a booking: those it cannot be made without, those tracked when given, and those that only
    narrow the choice [INFERRED].
    """

    required: tuple[str, ...]
    tracked: tuple[str, ...]
    other: tuple[str, ...]


TOOLS: dict[str, BookingSlots] = {
    "book_hotel": BookingSlots(
        ("people", "day", "stay"),
        ("name",),
        ("area", "pricerange", "stars", "type", "parking", "internet"),
    ),
    "book_restaurant": BookingSlots(("people", "day", "time"), ("name",), ("food", "area", "pricerange")),
    "book_train": BookingSlots(("people", "day", "departure", "destination"), (), ("leaveAt", "arriveBy")),
    "book_taxi": BookingSlots(("departure", "destination"), ("leaveAt", "arriveBy"), ()),
}
_UNSET = frozenset({"", "not mentioned", "none", "dontcare", "don't care", "do n't care", "dont care"})
_SLOT_NAMES = {"leaveat": "leaveAt", "arriveby": "arriveBy"}

State = dict[str, tuple[str, ...]]
"""Of one service at one turn: the spellings of each value."""


def dialogues(files: list[Path]) -> Iterator[Record]:
    """The dialogues of data.json (2.0, 2.1) or of dialogues_*.json (2.2)."""
    for file in files:
        content = read_json(file)
        if isinstance(content, dict):
            for name, dialogue in content.items():
                yield _record(f"{file}:{name}", name, dialogue, {})
        elif isinstance(content, list):
            acts_file = find_files(file.parent, "dialog_acts.json", "../dialog_acts.json")[0]
            acts = read_json(acts_file)
            if not isinstance(acts, dict):
                raise SourceError(f"{acts_file}:1: not the acts of dialogues by id")
            for position, dialogue in enumerate(content, start=1):
                name = dialogue.get("dialogue_id") if isinstance(dialogue, dict) else None
                yield _record(
                    f"{file}:dialogue {position}", name, dialogue, {"acts": acts.get(str(name), {})}
                )
        else:
            raise SourceError(f"{file}:1: neither dialogues by id nor a list of dialogues")


def _record(where: str, name: object, dialogue: object, acts: dict[str, Any]) -> Record:
    if not isinstance(dialogue, dict):
        raise SourceError(f"{where}: not an object")
    if not isinstance(name, str) or not name:
        raise SourceError(f"{where}: no dialogue_id")
    name = f"multiwoz/{name.removesuffix('.json')}"
    return Record(where, name, dialogue | acts | {"dialogue_id": name})


def compact(record: dict[str, Any], counters: Counter[str]) -> dict[str, Any]:
    """A dialogue of either release in the compact form."""
    if "log" in record:
        records.check(multiwoz_records.MultiwozLog, record)
        turns = [
            {"speaker": "SYSTEM" if i % 2 else "USER", "text": entry["text"], "acts": entry.get("dialog_act")}
            for i, entry in enumerate(record["log"])
        ]
        states, calls = _bookings_by_metadata(record["log"])
        goal = record["goal"]
    else:
        records.check(multiwoz_records.MultiwozRelease, record)
        turns = [
            {
                "speaker": turn["speaker"],
                "text": turn["utterance"],
                "acts": record["acts"].get(str(i), {}).get("dialog_act", {}),
            }
            for i, turn in enumerate(record["turns"])
        ]
        states, calls = _bookings_by_acts(record["turns"], turns, counters)
        goal = dict.fromkeys(record["services"], True)
    actions = [_action(service, call, states) for call, service in calls]
    return {"dialogue_id": record["dialogue_id"], "goal": goal, "turns": turns, "actions": actions}


def _bookings_by_metadata(
    log: list[dict[str, Any]],
) -> tuple[dict[int, dict[str, State]], list[tuple[int, str]]]:
    """States by user turn (0-based), and (system turn, service) of each booking that the metadata gains."""
    states: dict[int, dict[str, State]] = {}
    calls: list[tuple[int, str]] = []
    known: list[tuple[str, Any]] = []
    for i in range(1, len(log), 2):
        states[i - 1] = {}
        for service, metadata in log[i]["metadata"].items():
            slots = metadata.get("semi", {}) | metadata.get("book", {})
            booked = [(service, entry) for entry in slots.pop("booked", ())]
            states[i - 1][service] = {
                slot: values for slot, value in slots.items() if (values := _values([value] if value else []))
            }
            if f"book_{service}" in TOOLS and any(entry not in known for entry in booked):
                calls.append((i, service))
                known += booked
    return states, calls


def _bookings_by_acts(
    raw: list[dict[str, Any]], turns: list[dict[str, Any]], counters: Counter[str]
) -> tuple[dict[int, dict[str, State]], list[tuple[int, str]]]:
    """The same for release 2.2: states from the user's frames, bookings from the agent's acts."""
    states: dict[int, dict[str, State]] = {}
    calls: list[tuple[int, str]] = []
    intents: dict[str, str] = {}
    current: dict[str, State] = {}
    made: dict[str, State] = {}
    for i, turn in enumerate(raw):
        if turn["speaker"] == "USER":
            for frame in turn["frames"]:
                state = frame["state"]
                intents[frame["service"]] = state["active_intent"]
                slots = {
                    slot.split("-", 1)[-1].removeprefix("book"): v for slot, v in state["slot_values"].items()
                }
                current[frame["service"]] = {
                    _SLOT_NAMES.get(slot, slot): values for slot, v in slots.items() if (values := _values(v))
                }
            states[i] = dict(current)
            continue
        for service in _booked_services(turns[i]["acts"], intents, counters):
            state = current.get(service, {})
            if made.get(service) == state:
                counters["booking_repeated"] += 1
                continue
            made[service] = state
            calls.append((i, service))
    return states, calls


def _booked_services(acts: dict[str, Any], intents: dict[str, str], counters: Counter[str]) -> list[str]:
    """The services that a system turn booked. Booking-Book names none: the one open booking is meant."""
    services = [s for s in ("train", "hotel", "restaurant") if f"{s.capitalize()}-OfferBooked" in acts]
    if any(slot.lower() == "phone" for slot, _ in acts.get("Taxi-Inform", ())):
        services.append("taxi")
    if "Booking-Book" in acts and not services:
        open_now = [s for s in ("hotel", "restaurant") if intents.get(s) == f"book_{s}"]
        counters["booking_of_unknown_service"] += len(open_now) != 1
        services += open_now if len(open_now) == 1 else []
    return services


def _values(spellings: list[str]) -> tuple[str, ...]:
    return tuple(v.strip() for v in spellings if isinstance(v, str) and v.strip().lower() not in _UNSET)


def _action(service: str, call: int, states: dict[int, dict[str, State]]) -> dict[str, Any]:
    """The booking at system turn ``call``: the values of the state before it, and the turn since which the
    state holds each.
    """
    method = f"book_{service}"
    slots = TOOLS[method]
    before = [u for u in sorted(states) if u < call]
    final = states[before[-1]].get(service, {}) if before else {}
    since: dict[str, int] = {}
    for slot in (*slots.required, *slots.tracked):
        wanted = set(final.get(slot, ()))
        for turn in reversed(before):
            if wanted.isdisjoint(states[turn].get(service, {}).get(slot, ())):
                break
            since[slot] = turn
    chosen = {slot: final[slot] for slot in (*slots.other, *slots.tracked, *slots.required) if slot in final}
    return {
        "service": service,
        "method": method,
        "parameters": {slot: values[0] for slot, values in chosen.items()},
        "variants": {slot: values[1:] for slot, values in chosen.items()},
        "call_turn": call,
        "evidence": {"value_turns": since},
    }
