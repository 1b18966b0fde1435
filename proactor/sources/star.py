"""STAR: Wizard-of-Oz dialogues with real API queries (compact JSONL, or the release through `star_raw`).

- An API that is both checked and booked (RequestType) becomes two tools: `x.check` reads, `x.book` writes and
  needs assent [DERIVED from apis.json].
- The data's `latest` (the user turn before the query) ends the window and is right. Its ``earliest`` is a
  first literal mention and often too early [measured, see the data's notes]. The window is therefore null
  when a required parameter was never tracked in the text (``untraced``) or a value was not found
  (`unmatched`). A booking opens at the user's acceptance, which is `latest`. A repeated query that would open
  together with the one before it is a point at `latest` [INFERRED].
- Coverage runs from the first user turn at which a value had been said, after the last query of the same
  tool, to `latest` [INFERRED].
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proactor.catalogs.star import read_apis, tools, two_step
from proactor.dialogue import Dialogue, Interval, Reference, Turn, windows
from proactor.dialogue.catalog import Catalog
from proactor.files import find_files
from proactor.sources import base, records, star_raw, star_records
from proactor.sources.base import Malformed, Subset
from proactor.sources.corpus import Corpus

_CONSTRAINT = re.compile(r"api\.(\w+)\((.*)\)$", re.DOTALL)
_WORDS = {
    "is_one_of": "",
    "contains": "",
    "is_not": "not ",
    "contains_not": "not ",
    "is_at_least": "at least ",
    "is_at_most": "at most ",
    "is_less_than": "less than ",
    "is_greater_than": "more than ",
}


class StarOptions(BaseModel):
    """How STAR is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trust_bookings: bool = Field(
        default=False,
        description="open a booking at the acceptance even when a parameter of it was never tracked",
    )


OPTIONS = StarOptions


def load(path: Path, subset: Subset, options: StarOptions) -> Corpus:
    """Reads a folder or file of either format, with the API files near it; see `sources.load`."""
    files = find_files(
        path, "star*.jsonl.gz", "*.jsonl", "dialogues/*.json", "[0-9]*.json", "*/dialogues/*.json"
    )
    reader = _Reader(star_raw.folder_of_apis(files[0]), options)
    counters: Counter[str] = Counter()
    if ".jsonl" in files[0].name:
        return base.convert_all(subset.choose_lines(files), reader.dialogue, reader.catalog, counters)
    chosen = subset.choose(star_raw.dialogues(files, counters))
    return base.convert_all(chosen, reader.dialogue, reader.catalog, counters)


def plain_value(raw: str) -> str | None:
    """A query's constraint in plain words, None when it is empty: ``"5 pm"`` -> 5 pm,
    `api.is_at_most(900)` -> at most 900.
    """
    text, prefix = raw.strip(), ""
    if match := _CONSTRAINT.match(text):
        prefix, text = _WORDS.get(match[1], f"{match[1]} "), match[2]
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        value = text
    values = value if isinstance(value, list) else [value]
    words = " or ".join(" ".join(str(v).split()) for v in values if v is not None)
    return f"{prefix}{words}" if words else None


class _Reader:
    """Builds dialogues and the catalog."""

    def __init__(self, apis: Path, options: StarOptions) -> None:
        self.options = options
        self.apis = read_apis(apis)
        self.catalog = Catalog(
            tools=tuple(tool for name, api in self.apis.items() for tool in tools(name, api))
        )

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of either format; a call repeated at one turn is dropped and counted."""
        if "Events" in record:
            records.check(star_records.StarRelease, record)
            record = star_raw.compact(record, self.apis, counters)
        else:
            records.check(star_records.StarCompact, record)
        turns = base.turns_of(record)
        references: list[Reference] = []
        calls: set[tuple[str, str, int]] = set()
        for action in record["actions"]:
            parameters = json.dumps(action["parameters"], sort_keys=True)
            call = (action["method"], parameters, action["last_visible_turn"])
            if call in calls:
                counters["duplicate_call"] += 1
                continue
            calls.add(call)
            references.append(self._reference(turns, action, f"a{len(references) + 1}", references, counters))
        tasks = [task for task in record["tasks"] if task in self.apis]
        used = {r.name for r in references} | {t.name for task in tasks for t in tools(task, self.apis[task])}
        return Dialogue(
            id=record["dialogue_id"],
            turns=turns,
            references=tuple(references),
            tools=tuple(name for name in self.catalog.names if name in used),
            domain="+".join(d for d in record["domains"] if d),
            source="star",
        )

    def _reference(
        self,
        turns: tuple[Turn, ...],
        action: dict[str, Any],
        name: str,
        earlier: list[Reference],
        counters: Counter[str],
    ) -> Reference:
        params: dict[str, str] = {}
        for key, raw in action["parameters"].items():
            value = None if key == "RequestType" else plain_value(raw)
            counters["empty_value"] += value is None and key != "RequestType"
            if value is not None:
                params[key] = value
        latest = base.last_user_turn(turns, action["last_visible_turn"] + 1)
        if latest is None:
            raise Malformed(f"{action['method']}: a query before the user spoke")
        literal, _ = windows.mentions(turns[:latest], params)
        traced = {
            key: turn + 1 for key, turn in action["value_turns"].items() if key in params and turn is not None
        }
        value_turns = literal | traced
        ready, reason = self._window(turns, action, latest, counters)
        tool = action["method"]
        if two_step(self.apis[tool]):
            tool += ".book" if action["request"] == "Book" else ".check"
        after = max((r.coverage[1] for r in earlier if r.name == tool and r.coverage), default=0)
        begin = windows.snap(turns, (max(after + 1, min(value_turns.values(), default=latest)), latest))
        first = min(begin[0] if begin else latest, ready[0] if ready else latest)
        return Reference(
            id=name,
            name=tool,
            params=params,
            coverage=(first, latest),
            ready=ready,
            observed_trigger=latest,
            value_turns=value_turns,
            values_seen=max(value_turns.values(), default=first)
            if value_turns.keys() >= params.keys()
            else None,
            null_reason=reason,
        )

    def _window(
        self, turns: tuple[Turn, ...], action: dict[str, Any], latest: int, counters: Counter[str]
    ) -> tuple[Interval | None, str]:
        booking = action["request"] == "Book"
        if booking and self.options.trust_bookings:
            return (latest, latest), ""
        if action["untraced_required"]:
            return None, "untraced"
        if action["window"] is None:
            return None, "unmatched" if action["unmatched"] else "no_window"
        if booking:
            counters["opened_by_assent"] += 1
            return (latest, latest), ""
        earliest = action["window"]["earliest"]
        before = action["depends_on_result_at_turn"]
        if before is not None and earliest <= before < latest - 1:
            counters["repeat_pointed"] += 1
            return (latest, latest), ""
        ready = windows.snap(turns, (earliest + 1, latest))
        return ready, "" if ready else "no_decision_turn"
