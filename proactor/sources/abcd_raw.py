"""ABCD's release, converted to the compact form: abcd_v1.1.json (gzip or plain), or its sample, a list.

ProActor's ABCD+ is made from this corpus: 7,042 of its 10,042 conversations, capped at 50 turns [NOTES].
Which ones were left out is not known, so all are read. `max_turns` cuts a conversation after that many spoken
turns and drops the later actions, counted (``dialogues_cut``, ``actions_cut``) [INFERRED: the cap may have
dropped whole conversations instead].

An entry of ``original`` is (speaker, text); the same entry of ``delexed`` has `targets`, which name the
button and the values of an action. A value counts as said at the first turn of either side that holds it
literally; numbers of seven or more digits match in any punctuation. These are the value turns of 94 of the
compact file's 100 actions; for the others the compact file finds fewer values [measured]. Only the sample was
at hand: the whole file, which is parsed at once, is untested.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.dialogue import Speaker, Turn, windows
from proactor.files import SourceError, read_json
from proactor.sources.base import Malformed, Record, compact_turns

_SPEAKERS: dict[str, Speaker] = {"agent": "agent", "customer": "user"}
_NOT_DIGITS = re.compile(r"\D+")


def conversations(file: Path, part: str) -> Iterator[Record]:
    """The conversations of one part of a release file ("all": of every part)."""
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
    if len(record["original"]) != len(record["delexed"]):
        raise Malformed("`original` and `delexed` are not of one length")
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
            turns.append(Turn(index=len(turns) + 1, speaker=_SPEAKERS[speaker], text=text.strip()))
    counters["dialogues_cut"] += cut
    return {
        "dialogue_id": record["dialogue_id"],
        "flow": record["scenario"]["flow"],
        "scenario": record["scenario"],
        "turns": compact_turns(turns),
        "actions": actions,
    }


def _action(targets: list[Any], turns: list[Turn], counters: Counter[str]) -> dict[str, Any] | None:
    """The action after ``turns``. None, counted, for one without a button or before the user spoke."""
    method, values = targets[2], [str(value) for value in targets[3] if str(value).strip()]
    if not method:
        counters["action_without_button"] += 1
        return None
    if not any(turn.speaker == "user" for turn in turns):
        counters["action_before_user"] += 1
        return None
    value_turns = [_first_mention(turns, value) for value in values]
    known = [turn for turn in value_turns if turn is not None]
    latest = len(turns) - 1
    complete = bool(known) and len(known) == len(values)
    return {
        "method": method,
        "values": values,
        "value_turns": value_turns,
        "last_visible_turn": latest,
        "window": {"earliest": max(known), "latest": latest} if complete else None,
    }


def _first_mention(turns: list[Turn], value: str) -> int | None:
    """The first turn (0-based) that holds ``value``."""
    mentions = [windows.first_mention(turns, (value,))]
    digits = _NOT_DIGITS.sub("", value)
    if len(digits) >= 7:
        mentions.append(next((t.index for t in turns if digits in _NOT_DIGITS.sub("", t.text)), None))
    return min((turn - 1 for turn in mentions if turn is not None), default=None)
