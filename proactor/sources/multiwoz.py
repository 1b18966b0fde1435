"""MultiWOZ: bookings of hotels, restaurants, trains and taxis (compact JSONL, or `multiwoz_raw`).

- A booking in the state of a system turn is a reference. The agent booked after the user turn before it
  [DERIVED]. If an earlier system turn already says that it was booked (the acts Booking-Book or
  X-OfferBooked) and only the reference number came later, the call is there (``booked_earlier``) [DERIVED].
- A value arrives at the user turn since which the dialogue state holds it as the booking has it [DERIVED].
  The window opens with the last of the required and tracked values (`multiwoz_raw.TOOLS`) [INFERRED].
- A booking needs assent, which the corpus does not annotate: the first user turn that asks for a booking in
  words or answers an offer or a question of the agent, else the turn of the logged booking
  (``assent_at_call``) [INFERRED]. After a failed attempt (Booking-NoBook, X-NoOffer) the window opens no
  earlier than the user's next turn (``opened_by_failure``) [DERIVED].
- Coverage runs from the first user turn with a value, after the last booking of the same tool, to the last
  ready turn [INFERRED]. A booking without any tracked value has no window (``untracked``).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Interval, Reference, Turn, windows
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.files import find_files
from proactor.sources import base, multiwoz_raw, multiwoz_records, records
from proactor.sources.base import Malformed, NoOptions, Subset
from proactor.sources.corpus import Corpus
from proactor.sources.multiwoz_raw import TOOLS

_DOMAINS = ("attraction", "bus", "hospital", "hotel", "police", "restaurant", "taxi", "train")
_ASKS = re.compile(r"\b(book\w*|reserv\w*|tickets?|taxi|cab|schedule|go ahead)\b", re.IGNORECASE)

OPTIONS = NoOptions


def load(path: Path, subset: Subset, _options: NoOptions) -> Corpus:
    """Reads a folder or file of any of the three formats; see `sources.load`."""
    files = find_files(
        path, "*.jsonl.gz", "*.jsonl", "data.json", "dialogues_*.json", "*/dialogues_*.json", "data.json.gz"
    )
    counters: Counter[str] = Counter()
    if ".jsonl" in files[0].name:
        return base.convert_all(subset.choose_lines(files), _dialogue, _catalog(), counters)
    return base.convert_all(subset.choose(multiwoz_raw.dialogues(files)), _dialogue, _catalog(), counters)


def _catalog() -> Catalog:
    return Catalog(
        tools=tuple(
            Tool(
                name=name,
                description=name.replace("_", " a "),
                effect="write",
                confirm=True,
                parameters=tuple(
                    Parameter(name=slot, required=slot in slots.required)
                    for slot in (*slots.required, *slots.tracked, *slots.other)
                ),
            )
            for name, slots in TOOLS.items()
        )
    )


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    if "actions" in record:
        records.check(multiwoz_records.MultiwozCompact, record)
    else:
        record = multiwoz_raw.compact(record, counters)
    turns = base.turns_of(record)
    references: list[Reference] = []
    for action in record["actions"]:
        references.append(_reference(turns, record, action, f"a{len(references) + 1}", references, counters))
    goal = record["goal"]
    return Dialogue(
        id=record["dialogue_id"],
        turns=turns,
        references=tuple(references),
        tools=tuple(TOOLS),
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
        raise Malformed(f"{action['method']}: a booking before the user spoke")
    literal, _ = windows.mentions(turns[:latest], params, variants)
    value_turns = literal | {key: turn for key, turn in tracked.items() if turn <= latest}
    after = max((r.coverage[1] for r in earlier if r.name == action["method"] and r.coverage), default=0)
    begin = max(after + 1, min((t for t in tracked.values()), default=latest))
    span = windows.snap(turns, (min(begin, latest), latest)) or (latest, latest)
    ready: Interval | None = None
    if tracked:
        start = max(span[0], min(latest, max(tracked.values())))
        failed = _turn_after_failure(record, action["service"], latest)
        counters["opened_by_failure"] += failed > start
        start = max(start, failed)
        ready = windows.snap(turns, (_assent_turn(turns, record, start, latest, counters), latest))
    return Reference(
        id=name,
        name=action["method"],
        params=params,
        coverage=span,
        ready=ready,
        observed_trigger=latest,
        value_turns=value_turns,
        values_seen=max(value_turns.values(), default=span[0])
        if value_turns.keys() >= params.keys()
        else None,
        variants=variants,
        null_reason="" if ready else "untracked",
    )


def _call(record: dict[str, Any], action: dict[str, Any], known: int, counters: Counter[str]) -> int:
    """The 0-based system turn of the booking, which is also the 1-based number of the last turn seen."""
    offer_booked = f"{action['service'].capitalize()}-OfferBooked"
    if not 0 <= action["call_turn"] < len(record["turns"]):
        raise Malformed(f"{action['method']}: no turn {action['call_turn']}")
    taken = {other["call_turn"] for other in record["actions"]}
    for position in range(known, action["call_turn"]):
        acts = record["turns"][position].get("acts") or {}
        if position not in taken and (
            offer_booked in acts or (action["service"] != "train" and "Booking-Book" in acts)
        ):
            counters["booked_earlier"] += 1
            return position
    return int(action["call_turn"])


def _turn_after_failure(record: dict[str, Any], service: str, latest: int) -> int:
    """The user turn after the last failed attempt before ``latest``; 0: no attempt failed."""
    refusals = {"Booking-NoBook", f"{service.capitalize()}-NoOffer"}
    failed = [
        i
        for i, turn in enumerate(record["turns"][: latest - 1])
        if refusals.intersection(turn.get("acts") or ())
    ]
    return failed[-1] + 2 if failed else 0


def _assent_turn(
    turns: tuple[Turn, ...], record: dict[str, Any], start: int, latest: int, counters: Counter[str]
) -> int:
    """The first user turn in start..latest that asks for the booking or answers the agent."""
    for turn in turns[start - 1 : latest]:
        before = record["turns"][turn.index - 2].get("acts") or {} if turn.index > 1 else {}
        asked = any(act.endswith(("-OfferBook", "-Request", "Booking-Inform")) for act in before)
        if turn.speaker == "user" and (_ASKS.search(turn.text) or asked):
            counters["opened_by_assent"] += turn.index > start
            return turn.index
    counters["assent_at_call"] += 1
    return latest
