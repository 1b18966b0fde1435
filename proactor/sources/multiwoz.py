"""MultiWOZ: bookings of hotels, restaurants, trains and taxis (compact JSONL; release 2.0/2.1 data.json;
release 2.2).

All three are brought to one record and its windows are derived once:

- a booking that appears in the state of a system turn is a reference; the agent booked after the user turn
  before it [DERIVED from the corpus]. Where a system turn before that one already says that it was booked
  (the acts Booking-Book or X-OfferBooked) and the reference number came only later, the call is there
  (`booked_earlier`) [DERIVED];
- a value is there from the user turn since which the dialogue state holds it as the booking has it [DERIVED];
  the window opens with the last of the tracked ones (`_TOOLS`: what a booking cannot do without, and times of
  a taxi) [INFERRED];
- a booking needs assent, which the corpus does not annotate: it is the first user turn that asks for a
  booking in words or that answers an offer or a question of the agent, else the turn of the logged booking
  (`assent_at_call`) [INFERRED]; after a failed attempt (Booking-NoBook, X-NoOffer) it opens with the user's
  next turn at the earliest (`opened_by_failure`) [DERIVED];
- coverage runs from the first user turn at which a value was there, after the last booking of the same tool,
  to the last ready turn [INFERRED]. A booking none of whose values is tracked has no window (`untracked`).

Release 2.0/2.1: {id: {goal, log: [{text, metadata, dialog_act}]}}; the state of a user turn is the metadata
of the system turn that follows; 2.0 has no acts. Release 2.2: dialogues_*.json in the form of SGD and
dialog_acts.json, from whose acts Booking-Book, Train-OfferBooked and Taxi-Inform (with a phone) the bookings
are read. Neither file was at hand: their form is taken from the release's notes and its own converter [CODE],
and is tested on files written by hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Interval, Reference, Turn, windows
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.files import SourceError, find_files, read_json
from proactor.sources import base
from proactor.sources.base import NoOptions, Record, Subset
from proactor.sources.corpus import Corpus

# Of each booking: the values without which it cannot be made, those that are tracked when given, and what
# else narrows the choice [INFERRED].
_TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "book_hotel": (
        ("people", "day", "stay"),
        ("name",),
        ("area", "pricerange", "stars", "type", "parking", "internet"),
    ),
    "book_restaurant": (("people", "day", "time"), ("name",), ("food", "area", "pricerange")),
    "book_train": (("people", "day", "departure", "destination"), (), ("leaveAt", "arriveBy")),
    "book_taxi": (("departure", "destination"), ("leaveAt", "arriveBy"), ()),
}
_DOMAINS = ("attraction", "bus", "hospital", "hotel", "police", "restaurant", "taxi", "train")
_UNSET = frozenset({"", "not mentioned", "none", "dontcare", "don't care", "do n't care", "dont care"})
_ASKS = re.compile(r"\b(book\w*|reserv\w*|tickets?|taxi|cab|schedule|go ahead)\b", re.IGNORECASE)
_SPELLED = {"leaveat": "leaveAt", "arriveby": "arriveBy"}

State = dict[str, tuple[str, ...]]
"""Of one service at one turn: the spellings of each value."""


OPTIONS = NoOptions


def load(path: Path, subset: Subset, _options: NoOptions) -> Corpus:
    """Reads a folder or file of any of the three formats; see `sources.load`."""
    files = find_files(
        path, "*.jsonl.gz", "*.jsonl", "data.json", "dialogues_*.json", "*/dialogues_*.json", "data.json.gz"
    )
    counters: Counter[str] = Counter()
    if ".jsonl" in files[0].name:
        return base.convert_all(subset.choose_lines(files), _dialogue, _catalog(), counters)
    return base.convert_all(subset.choose(_release(files)), _dialogue, _catalog(), counters)


def _catalog() -> Catalog:
    return Catalog(
        tools=tuple(
            Tool(
                name=name,
                description=name.replace("_", " a "),
                effect="write",
                confirm=True,
                parameters=tuple(
                    Parameter(name=slot, required=slot in required) for slot in (*required, *tracked, *other)
                ),
            )
            for name, (required, tracked, other) in _TOOLS.items()
        )
    )


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    record = record if "actions" in record else _compact(record, counters)
    turns = base.turns_of(record)
    references: list[Reference] = []
    for action in record["actions"]:
        references.append(_reference(turns, record, action, f"a{len(references) + 1}", references, counters))
    goal = record["goal"]
    return Dialogue(
        id=record["dialogue_id"],
        turns=turns,
        references=tuple(references),
        tools=tuple(_TOOLS),
        domain="+".join(d for d in _DOMAINS if goal.get(d)),
        source="multiwoz",
    )


def _reference(
    turns: tuple[Turn, ...],
    record: dict[str, Any],
    action: dict[str, Any],
    name: str,
    earlier: list[Reference],
    counters: Counter[str],
) -> Reference:
    params = {key: str(value) for key, value in action["parameters"].items()}
    variants = {key: tuple(other) for key, other in action.get("variants", {}).items() if other}
    tracked = {key: turn + 1 for key, turn in action["evidence"]["value_turns"].items() if turn is not None}
    latest = base.last_user_turn(turns, _call(record, action, max(tracked.values(), default=0), counters))
    if latest is None:
        raise ValueError(f"{action['method']}: a booking before the user spoke")
    literal, _ = windows.mentions(turns[:latest], params, variants)
    said = literal | {key: turn for key, turn in tracked.items() if turn <= latest}
    after = max((r.coverage[1] for r in earlier if r.name == action["method"] and r.coverage), default=0)
    begin = max(after + 1, min((t for t in tracked.values()), default=latest))
    span = windows.snap(turns, (min(begin, latest), latest)) or (latest, latest)
    ready: Interval | None = None
    if tracked:
        start = max(span[0], min(latest, max(tracked.values())))
        failed = _failed(record, action["service"], latest)
        counters["opened_by_failure"] += failed > start
        start = max(start, failed)
        ready = windows.snap(turns, (_assent(turns, record, start, latest, counters), latest))
    return Reference(
        id=name,
        name=action["method"],
        params=params,
        coverage=span,
        ready=ready,
        observed_trigger=latest,
        value_turns=said,
        values_seen=max(said.values(), default=span[0]) if said.keys() >= params.keys() else None,
        variants=variants,
        null_reason="" if ready else "untracked",
    )


def _call(record: dict[str, Any], action: dict[str, Any], known: int, counters: Counter[str]) -> int:
    """The system turn (0-based, so the last turn seen, 1-based) at which the booking was made."""
    mine = f"{action['service'].capitalize()}-OfferBooked"
    taken = {other["call_turn"] for other in record["actions"]}
    for position in range(known, action["call_turn"]):
        acts = record["turns"][position].get("acts") or {}
        if position not in taken and (
            mine in acts or (action["service"] != "train" and "Booking-Book" in acts)
        ):
            counters["booked_earlier"] += 1
            return position
    return int(action["call_turn"])


def _failed(record: dict[str, Any], service: str, latest: int) -> int:
    """The user turn after the last failed attempt before `latest`, 0 when there was none."""
    refusals = {"Booking-NoBook", f"{service.capitalize()}-NoOffer"}
    failed = [
        i
        for i, turn in enumerate(record["turns"][: latest - 1])
        if refusals.intersection(turn.get("acts") or ())
    ]
    return failed[-1] + 2 if failed else 0


def _assent(
    turns: tuple[Turn, ...], record: dict[str, Any], start: int, latest: int, counters: Counter[str]
) -> int:
    """The first user turn of start..latest that asks for the booking, or answers an offer or a question of
    the agent.
    """
    for turn in turns[start - 1 : latest]:
        before = record["turns"][turn.index - 2].get("acts") or {} if turn.index > 1 else {}
        asked = any(act.endswith(("-OfferBook", "-Request", "Booking-Inform")) for act in before)
        if turn.speaker == "user" and (_ASKS.search(turn.text) or asked):
            counters["opened_by_assent"] += turn.index > start
            return turn.index
    counters["assent_at_call"] += 1
    return latest


def _release(files: list[Path]) -> Iterator[Record]:
    """The dialogues of data.json (2.0, 2.1) or of dialogues_*.json (2.2)."""
    for file in files:
        content = read_json(file)
        if isinstance(content, dict):
            for name, dialogue in content.items():
                yield _named(f"{file}:{name}", name, dialogue, {})
        elif isinstance(content, list):
            acts = read_json(find_files(file.parent, "dialog_acts.json", "../dialog_acts.json")[0])
            for position, dialogue in enumerate(content, start=1):
                name = dialogue.get("dialogue_id") if isinstance(dialogue, dict) else None
                yield _named(f"{file}:dialogue {position}", name, dialogue, {"acts": acts.get(name, {})})
        else:
            raise SourceError(f"{file}:1: neither dialogues by id nor a list of dialogues")


def _named(where: str, name: object, dialogue: object, more: dict[str, Any]) -> Record:
    if not isinstance(dialogue, dict):
        raise SourceError(f"{where}: not an object")
    if not isinstance(name, str) or not name:
        raise SourceError(f"{where}: no dialogue_id")
    name = f"multiwoz/{name.removesuffix('.json')}"
    return Record(where, name, dialogue | more | {"dialogue_id": name})


def _compact(record: dict[str, Any], counters: Counter[str]) -> dict[str, Any]:
    """A dialogue of either release in the compact form."""
    if "log" in record:
        turns = [
            {"speaker": "SYSTEM" if i % 2 else "USER", "text": entry["text"], "acts": entry.get("dialog_act")}
            for i, entry in enumerate(record["log"])
        ]
        states, calls = _by_metadata(record["log"])
        goal = record["goal"]
    else:
        turns = [
            {
                "speaker": turn["speaker"],
                "text": turn["utterance"],
                "acts": record["acts"].get(str(i), {}).get("dialog_act", {}),
            }
            for i, turn in enumerate(record["turns"])
        ]
        states, calls = _by_acts(record["turns"], turns, counters)
        goal = dict.fromkeys(record["services"], True)
    actions = [_action(service, call, states) for call, service in calls]
    return {"dialogue_id": record["dialogue_id"], "goal": goal, "turns": turns, "actions": actions}


def _by_metadata(log: list[dict[str, Any]]) -> tuple[dict[int, dict[str, State]], list[tuple[int, str]]]:
    """States by user turn (0-based), and (system turn, service) of each booking that the metadata gains."""
    states: dict[int, dict[str, State]] = {}
    calls: list[tuple[int, str]] = []
    known: list[tuple[str, Any]] = []
    for i in range(1, len(log), 2):
        states[i - 1] = {}
        for service, given in log[i]["metadata"].items():
            slots = given.get("semi", {}) | given.get("book", {})
            booked = [(service, entry) for entry in slots.pop("booked", ())]
            states[i - 1][service] = {
                slot: values for slot, value in slots.items() if (values := _values([value] if value else []))
            }
            if f"book_{service}" in _TOOLS and any(entry not in known for entry in booked):
                calls.append((i, service))
                known += booked
    return states, calls


def _by_acts(
    raw: list[dict[str, Any]], turns: list[dict[str, Any]], counters: Counter[str]
) -> tuple[dict[int, dict[str, State]], list[tuple[int, str]]]:
    """The same of release 2.2: states of the user's frames, bookings of the agent's acts."""
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
                    slot.split("-", 1)[1].removeprefix("book"): v for slot, v in state["slot_values"].items()
                }
                current[frame["service"]] = {
                    _SPELLED.get(slot, slot): values for slot, v in slots.items() if (values := _values(v))
                }
            states[i] = dict(current)
            continue
        for service in _booked(turns[i]["acts"], intents, counters):
            state = current.get(service, {})
            if made.get(service) == state:
                counters["booking_repeated"] += 1
                continue
            made[service] = state
            calls.append((i, service))
    return states, calls


def _booked(acts: dict[str, Any], intents: dict[str, str], counters: Counter[str]) -> list[str]:
    """The services that a system turn says it booked; a Booking-Book does not name its own."""
    found = [s for s in ("train", "hotel", "restaurant") if f"{s.capitalize()}-OfferBooked" in acts]
    if any(slot.lower() == "phone" for slot, _ in acts.get("Taxi-Inform", ())):
        found.append("taxi")
    if "Booking-Book" in acts and not found:
        open_now = [s for s in ("hotel", "restaurant") if intents.get(s) == f"book_{s}"]
        counters["booking_of_unknown_service"] += len(open_now) != 1
        found += open_now if len(open_now) == 1 else []
    return found


def _values(given: list[str]) -> tuple[str, ...]:
    return tuple(v.strip() for v in given if isinstance(v, str) and v.strip().lower() not in _UNSET)


def _action(service: str, call: int, states: dict[int, dict[str, State]]) -> dict[str, Any]:
    """The booking at system turn `call`: the values of the state before it, and since when the state has had
    them.
    """
    method = f"book_{service}"
    required, tracked, other = _TOOLS[method]
    before = [u for u in sorted(states) if u < call]
    final = states[before[-1]].get(service, {}) if before else {}
    since: dict[str, int] = {}
    for slot in (*required, *tracked):
        wanted = set(final.get(slot, ()))
        for turn in reversed(before):
            if wanted.isdisjoint(states[turn].get(service, {}).get(slot, ())):
                break
            since[slot] = turn
    chosen = {slot: final[slot] for slot in (*other, *tracked, *required) if slot in final}
    return {
        "service": service,
        "method": method,
        "parameters": {slot: values[0] for slot, values in chosen.items()},
        "variants": {slot: values[1:] for slot, values in chosen.items()},
        "call_turn": call,
        "evidence": {"value_turns": since},
    }
