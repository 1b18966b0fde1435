"""ABCD's own release (abcd_v1.1.json, gzip or plain: {train, dev, test}; its sample: a list) in the compact
form.

ProActor's ABCD+ is made from this corpus: 7,042 of its 10,042 conversations, capped at 50 turns [NOTES].
Which ones were left out is not known, so all are read; `max_turns` cuts a conversation after so many spoken
turns and drops the later actions, counted (`dialogues_cut`, `actions_cut`) [INFERRED: whether the cap cuts or
drops is not known].

An entry of `original` is (speaker, text) and stands beside the same entry of `delexed`, whose `targets` name
the button and the values of an action. A value had been said when a turn of either side first held it
literally; a number of seven or more digits may be punctuated otherwise. These are the value turns of 94 of
the compact file's 100 actions; in the others the compact file finds fewer values [measured]. The whole file
was not at hand: it is parsed at once, which was tried on the sample only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Turn, windows
from proactor.files import SourceError, read_json
from proactor.sources.base import Record

_SPEAKERS = {"agent": "AGENT", "customer": "USER"}
_NOT_DIGITS = re.compile(r"\D+")


def conversations(file: Path, part: str) -> Iterator[Record]:
    """The conversations of a release file, of `part` of it ("all": of every part)."""
    content = read_json(file)
    parts = {"sample": content} if isinstance(content, list) else content
    if not isinstance(parts, dict) or (part != "all" and part not in parts):
        raise SourceError(f"{file}:1: no part {part!r}")
    for name, listed in parts.items():
        if part not in ("all", name):
            continue
        if not isinstance(listed, list):
            raise SourceError(f"{file}:{name}: not a list of conversations")
        for position, record in enumerate(listed, start=1):
            where = f"{file}:{name} {position}"
            if not isinstance(record, dict) or not isinstance(record.get("convo_id"), int | str):
                raise SourceError(f"{where}: no convo_id")
            identity = f"abcd/{record['convo_id']}"
            yield Record(where, identity, record | {"dialogue_id": identity})


def compact(record: dict[str, Any], max_turns: int | None, counters: Counter[str]) -> dict[str, Any]:
    """A conversation of the release as a compact record."""
    turns: list[Turn] = []
    actions: list[dict[str, Any]] = []
    cut = False
    for (speaker, text), target in zip(record["original"], record["delexed"], strict=True):
        if speaker == "action":
            action = _action(target["targets"], turns, counters)
            if action is not None:
                counters["actions_cut"] += cut
                actions += [] if cut else [action]
        elif not text.strip():
            counters["empty_turn"] += 1
        elif max_turns is not None and len(turns) >= max_turns:
            cut = True
        else:
            who = "user" if _SPEAKERS[speaker] == "USER" else "agent"
            turns.append(Turn(index=len(turns) + 1, speaker=who, text=text.strip()))
    counters["dialogues_cut"] += cut
    return {
        "dialogue_id": record["dialogue_id"],
        "flow": record["scenario"]["flow"],
        "scenario": record["scenario"],
        "turns": [{"speaker": "USER" if t.speaker == "user" else "AGENT", "text": t.text} for t in turns],
        "actions": actions,
    }


def _action(targets: list[Any], turns: list[Turn], counters: Counter[str]) -> dict[str, Any] | None:
    """An action after `turns`; None, counted, for one without a button or before the user spoke."""
    method, values = targets[2], [str(value) for value in targets[3] if str(value).strip()]
    if not method:
        counters["action_without_button"] += 1
        return None
    if not any(turn.speaker == "user" for turn in turns):
        counters["action_before_user"] += 1
        return None
    said = [_said(turns, value) for value in values]
    known = [turn for turn in said if turn is not None]
    latest = len(turns) - 1
    whole = bool(known) and len(known) == len(values)
    return {
        "method": method,
        "values": values,
        "value_turns": said,
        "last_visible_turn": latest,
        "window": {"earliest": max(known), "latest": latest} if whole else None,
    }


def _said(turns: list[Turn], value: str) -> int | None:
    """The first turn (0-based) that holds `value`."""
    found = [windows.first_mention(turns, (value,))]
    digits = _NOT_DIGITS.sub("", value)
    if len(digits) >= 7:
        found.append(next((t.index for t in turns if digits in _NOT_DIGITS.sub("", t.text)), None))
    return min((turn - 1 for turn in found if turn is not None), default=None)
