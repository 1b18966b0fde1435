"""STAR's own release (dialogues/*.json, one dialogue a file; apis/apis/*.json) in the compact form.

- ``utter`` and ``pick_suggestion`` events are turns, ``query`` events are calls after the last turn.
- A value is searched for literally in the turns before its query, whoever spoke. A value that cannot be
  searched for (a constraint such as `api.is_at_most`, `_NEVER_SAID`) is not tracked, and is listed in
  ``untraced_required`` when the API requires it. The compact file was matched more loosely: nine in ten of
  its value turns agree [measured].
- Dialogues that were not completed are dropped and counted (``incomplete``), as in the compact file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Turn, windows
from proactor.files import SourceError, read_json
from proactor.sources.base import Record, compact_turns

# Parameters that the wizard fills in without anybody saying them [measured on the compact file].
_NEVER_SAID = frozenset(
    {"RequestType", "CustomerRequest", "FoodRequest", "MeetingReason", "id", "ApplicationFeePaid"}
)
_NOT_COUNTED = frozenset({"RequestType", "CustomerRequest"})
_EQUAL = re.compile(r"api\.is_equal_to\((.*)\)\Z", re.DOTALL)


def folder_of_apis(path: Path) -> Path:
    """The API files for the dialogues at ``path``: apis.json or apis/apis beside them or one level up."""
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        for apis in (place / "apis.json", place / "apis" / "apis"):
            if apis.exists():
                return apis
    return folder / "apis.json"


def dialogues(files: list[Path], counters: Counter[str]) -> Iterator[Record]:
    """The completed dialogues of the release's files."""
    for file in files:
        record = read_json(file)
        if not isinstance(record, dict) or not isinstance(record.get("DialogueID"), int | str):
            raise SourceError(f"{file}:1: no DialogueID")
        if record.get("CompletionLevel") != "Complete":
            counters["incomplete"] += 1
            continue
        identity = f"star/{record['DialogueID']}"
        yield Record(str(file), identity, record | {"dialogue_id": identity})


def compact(
    record: dict[str, Any], apis: dict[str, dict[str, Any]], counters: Counter[str]
) -> dict[str, Any]:
    """A dialogue of the release as a compact record."""
    turns: list[Turn] = []
    actions: list[dict[str, Any]] = []
    for event in record["Events"]:
        if event["Action"] in ("utter", "pick_suggestion") and event["Agent"] in ("User", "Wizard"):
            if not event["Text"].strip():
                counters["empty_turn"] += 1
                continue
            who = "user" if event["Agent"] == "User" else "agent"
            turns.append(Turn(index=len(turns) + 1, speaker=who, text=event["Text"].strip()))
        elif event["Action"] == "query":
            if any(turn.speaker == "user" for turn in turns):
                actions.append(_query(event, turns, actions, apis))
            else:
                counters["query_before_user"] += 1
    scenario = record["Scenario"]
    return {
        "dialogue_id": record["dialogue_id"],
        "domains": scenario["Domains"],
        "tasks": [task["Task"] for task in scenario["WizardCapabilities"]],
        "turns": compact_turns(turns),
        "actions": actions,
    }


def _query(
    event: dict[str, Any], turns: list[Turn], earlier: list[dict[str, Any]], apis: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    method = event["APIName"]
    parameters = {
        name: _EQUAL.sub(r"\1", str(raw).strip())
        for constraint in event["Constraints"]
        for name, raw in constraint.items()
    }
    value_turns: dict[str, int] = {}
    unmatched: list[str] = []
    for name, raw in parameters.items():
        value = raw.strip("[]\"' ")
        if name in _NEVER_SAID or raw.startswith("api.") or not value:
            continue
        turn = windows.first_mention(turns, (value,))
        if turn is None:
            unmatched.append(name)
        else:
            value_turns[name] = turn - 1
    latest = len(turns) - 1
    before = next((a["last_visible_turn"] for a in reversed(earlier) if a["method"] == method), None)
    known = [*value_turns.values(), *([] if before is None else [before])]
    request = parameters.get("RequestType", "").strip('"')
    return {
        "method": method,
        "request": request or None,
        "parameters": parameters,
        "value_turns": value_turns,
        "unmatched": unmatched,
        "untraced_required": [
            n for n in apis[method]["required"] if n not in value_turns and n not in _NOT_COUNTED
        ],
        "last_visible_turn": latest,
        "depends_on_result_at_turn": before,
        "window": None if unmatched or not value_turns else {"earliest": max(known), "latest": latest},
    }
