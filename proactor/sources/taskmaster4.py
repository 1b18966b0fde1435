"""Taskmaster-4: coffee orders with the API calls of each utterance (JSONL, or the release's data_*.json).

- A call is annotated on the user turn after which it ran: that turn is its logged trigger and the end of its
  window [DERIVED]. A call on the first user turn has that turn as its window. A later window opens with the
  last value, and is null when a value is never said literally (`unmatched`) [INFERRED].
- finish_order sends the order off and needs assent: its window is the turn that answers the agent's question
  about the order. Without an agent turn since the order last changed it is null (``no_assent``) [INFERRED].
  Its coverage begins where the order last changed.
- Coverage of any other call begins at the first user turn at which a value had been said [INFERRED].
- Ids are made up by the service and never spoken. Items and addons go by their names (from earlier answers,
  else from the id); order ids are left out and counted (``id_left_out``). A quantity of 1 is the default and
  left out. Attributes become parameters of their own: ``milk-options`` is milk_options.

A line is one record of the release, unchanged; the release's files are lists of such records.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Interval, Reference, Turn, windows
from proactor.files import SourceError, find_files, read_json
from proactor.sources import base, records, taskmaster4_records
from proactor.sources.base import Malformed, NoOptions, Record, Subset
from proactor.sources.corpus import Corpus, ToolRow, catalog_of

_OPTIONS = ("milk_options", "espresso_shots", "caffeine", "hot_or_iced")
_TOOLS: dict[str, ToolRow] = {
    "show_menu": ("show the menu", "read", ()),
    "get_menu_items": ("look up drinks on the menu", "read", ("query", "fields")),
    "get_addons": ("look up options and addons", "read", ("query", "item", "scope")),
    "add_order_item": (
        "add a drink to the order",
        "write",
        ("item", "quantity", *_OPTIONS, "addons", "notes"),
    ),
    "update_order_item": ("change a drink of the order", "write", (*_OPTIONS, "addons", "notes")),
    "update_order": ("change the order itself", "write", ("order_type",)),
    "get_order_details": ("show the order", "read", ()),
    "finish_order": ("send the order off", "irreversible", ()),
}
_CONTENT: dict[str, type[records.Shape]] = {
    "request": taskmaster4_records.TaskmasterRequest,
    "response": taskmaster4_records.TaskmasterResponse,
}
_CHANGES = frozenset({"add_order_item", "update_order_item", "update_order"})
_ITEM_ID = re.compile(r"[-_]*\d+\Z")
_NUMBERS = {"2": ("two", "a couple"), "3": ("three",), "4": ("four",)}
# Words of a value that people leave out: "oat" for "Oat Milk".
_TAIL = re.compile(r"\s+(?:milk|sweetener|sauce)\Z", re.IGNORECASE)
_SAID_AS = {
    "decaf": ("decaffeinated", "decafe", "no caffeine", "without caffeine"),
    "decaffeinated": ("decaf", "decafe"),
    "togo": ("to go", "to-go", "take out", "takeout"),
    "to go": ("togo", "to-go", "take out", "takeout"),
    "non-fat milk": ("nonfat", "non fat", "skim"),
}


OPTIONS = NoOptions


def load(path: Path, subset: Subset, _options: NoOptions) -> Corpus:
    """Reads a folder or file of either format; see `sources.load`."""
    files = find_files(path, "*.jsonl.gz", "*.jsonl", "data_*.json", "data/data_*.json")
    counters: Counter[str] = Counter()
    catalog = catalog_of(_TOOLS, asks=("irreversible",), required=("query", "item"))
    if ".jsonl" in files[0].name:
        lines = subset.choose_lines(files, "conversation_id", lambda file, value: _dialogue_id(value))
        return base.convert_all(lines, _dialogue, catalog, counters)
    return base.convert_all(subset.choose(_release(files)), _dialogue, catalog, counters)


def _dialogue_id(conversation_id: str) -> str:
    return f"taskmaster4/{conversation_id}"


def _release(files: list[Path]) -> Iterator[Record]:
    for file in files:
        content = read_json(file)
        if not isinstance(content, list):
            raise SourceError(f"{file}:1: not a list of dialogues")
        for position, record in enumerate(content, start=1):
            name = record.get("conversation_id") if isinstance(record, dict) else None
            if not isinstance(name, str) or not name:
                raise SourceError(f"{file}:dialogue {position}: no conversation_id")
            yield Record(f"{file}:dialogue {position}", _dialogue_id(name), record)


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    records.check(taskmaster4_records.TaskmasterRecord, record)
    turns = base.turns_of(
        {"turns": [{"speaker": u["speaker"].upper(), "text": u["text"]} for u in record["utterances"]]}
    )
    names: dict[str, str] = {}
    references: list[Reference] = []
    for turn, utterance in zip(turns, record["utterances"], strict=True):
        for call in _calls(utterance["annotations"], counters):
            if call["name"] not in _TOOLS:
                raise Malformed(f"turn {turn.index}: an API {call['name']!r} that is not known")
            params = _params(call, names, counters)
            at = base.last_user_turn(turns, turn.index)
            if at is None:
                raise Malformed(f"{call['name']}: a call before the user spoke")
            identity = f"a{len(references) + 1}"
            references.append(
                _reference(turns, call["name"], params, identity, at, references, bool(call["broken"]))
            )
            _add_names(call["response"], names)
    return Dialogue(
        id=_dialogue_id(record["conversation_id"]),
        turns=turns,
        references=tuple(references),
        tools=tuple(_TOOLS),
        domain=str(record["vertical"]).lower(),
        source="taskmaster4",
    )


def _calls(annotations: list[dict[str, Any]], counters: Counter[str]) -> list[dict[str, Any]]:
    """The calls of one utterance: name, request, response and whether the request could not be read."""
    calls: dict[str, dict[str, Any]] = {}
    for note in annotations:
        kind, _, number = note["context"].rpartition("_")
        if not kind:
            raise Malformed(f"an annotation of the context {note['context']!r}")
        call = calls.setdefault(number, {"name": "", "request": {}, "response": {}, "broken": False})
        if kind == "api_call" and note["name"] == "api_call":
            call["name"] = note["value"]
        elif note["name"] in ("request", "response"):
            content = _json(note["value"], counters)
            call["broken"] |= content is None and note["name"] == "request"
            records.check(_CONTENT[note["name"]], content or {})
            call[note["name"]] = content or {}
    counters["unreadable_request"] += sum(call["broken"] for call in calls.values())
    return [call for call in calls.values() if call["name"]]


def _json(text: str, counters: Counter[str]) -> dict[str, Any] | None:
    """A request or answer, None when it cannot be read. Ids quoted twice are repaired and counted."""
    for attempt in (text, text.replace('""', '"')):
        try:
            content = json.loads(attempt)
        except (ValueError, RecursionError):
            continue
        counters["json_mended"] += attempt is not text
        return content if isinstance(content, dict) else None
    return None


def _add_names(response: dict[str, Any], names: dict[str, str]) -> None:
    """Add the names of the items and addons that an answer lists."""
    for listed, key in (("menu_items", "menu_item_id"), ("addons", "addon_id")):
        for entry in response.get(listed) or ():
            name = isinstance(entry, dict) and (entry.get("name") or entry.get("menu_item_name"))
            if name and entry.get(key):
                names[str(entry[key])] = str(name).strip()


def _params(call: dict[str, Any], names: dict[str, str], counters: Counter[str]) -> dict[str, str]:
    params: dict[str, str] = {}
    known = _TOOLS[call["name"]][2]
    for key, value in call["request"].items():
        if key in ("order_id", "order_item_id"):
            counters["id_left_out"] += 1
        elif key == "menu_item_id":
            params["item"] = _name(value, names)
        elif key == "attributes":
            params |= {_slot(a): str(a["option"]).strip() for a in value if str(a["option"]).strip()}
        elif key == "addons":
            params["addons"] = " and ".join(_name(a["addon_id"], names) for a in value)
        elif key == "quantity" and value == "1":
            counters["default_quantity"] += 1
        else:
            params[key] = " and ".join(map(str, value)) if isinstance(value, list) else str(value).strip()
    counters["values_of_no_parameter"] += len(params.keys() - set(known))
    return {slot: params[slot] for slot in known if params.get(slot)}


def _slot(attribute: dict[str, Any]) -> str:
    slot = str(attribute["attribute_id"]).strip().lower().replace("-", "_")
    return {"iced": "hot_or_iced", "milk": "milk_options"}.get(slot, slot)


def _name(identity: str, names: dict[str, str]) -> str:
    return names.get(identity) or _ITEM_ID.sub("", identity).replace("-", " ").strip() or identity


def _reference(
    turns: tuple[Turn, ...],
    name: str,
    params: dict[str, str],
    identity: str,
    at: int,
    earlier: list[Reference],
    broken: bool,
) -> Reference:
    variants = {slot: forms for slot, value in params.items() if (forms := _spellings(value))}
    value_turns, seen = windows.mentions(turns[:at], params, variants)
    ready: Interval | None = None
    reason = ""
    changed = max((r.coverage[1] for r in earlier if r.name in _CHANGES and r.coverage), default=at)
    begin = changed if name == "finish_order" else min(value_turns.values(), default=at)
    if broken:
        reason = "unreadable_request"
    elif name == "finish_order":
        asked = any(t.speaker == "agent" for t in turns[changed : at - 1])
        ready, reason = ((at, at), "") if asked else (None, "no_assent")
    elif at == _first_user_turn(turns) or not params:
        ready = (at, at)
    elif seen is None:
        reason = "unmatched"
    else:
        ready = windows.snap(turns, (seen, at))
    covered = windows.snap(turns, (min(begin, ready[0] if ready else at), at)) or (at, at)
    return Reference(
        id=identity,
        name=name,
        params=params,
        coverage=covered,
        ready=ready,
        observed_trigger=at,
        value_turns=value_turns,
        values_seen=seen,
        variants=variants,
        null_reason=reason,
    )


def _first_user_turn(turns: tuple[Turn, ...]) -> int:
    return next(t.index for t in turns if t.speaker == "user")


def _spellings(value: str) -> tuple[str, ...]:
    low = " ".join(value.lower().split())
    forms = [*_SAID_AS.get(low, ()), *_NUMBERS.get(low, ()), low.removesuffix("s") if len(low) > 3 else ""]
    forms.append(_TAIL.sub("", low))
    forms.append(f"{low}s")
    return tuple(dict.fromkeys(form for form in forms if form and form != low))
