"""What an import does not read: columns of a table, keys of JSON conversations and of their turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proactor.sources import messages, transcript
from proactor.sources.table import plain_name
from proactor.transcripts.entries import FileRead, value_at
from proactor.transcripts.mapping import ImportMap
from proactor.transcripts.shape import tools_in

_OF_CONVERSATIONS = ("conversation", "domain", "turns")
_LISTS = {"chat": "messages", "turns": "turns"}
"""The list of turns in the forms whose names are not for a mapping to say."""


def unread(files: Sequence[FileRead], mapping: ImportMap) -> list[str]:
    """Columns and keys that nothing takes, in the order they come; those of turns as "turns.key"."""
    columns = mapping.columns.model_dump(exclude_none=True)
    known = {plain_name(name) for name in columns.values()}
    names: dict[str, None] = {}
    for read in files:
        if read.kind == "table":
            names |= dict.fromkeys(name for name in read.names if plain_name(name) not in known)
        else:
            for entry in read.entries:
                names |= dict.fromkeys(_of_object(entry.value, mapping.form, columns))
    return list(names)


def _of_object(value: dict[str, Any], form: str, columns: dict[str, str]) -> Iterator[str]:
    if form == "rows":
        taken = _heads(columns.values())
        yield from (key for key in value if key not in taken)
        return
    listed = _LISTS.get(form, columns.get("turns", ""))
    if form in _LISTS:
        of_turns = messages.KEYS if form == "chat" else transcript.TURN_KEYS
        outer = transcript.KEYS | {listed}
    else:
        of_turns = _heads(theirs for ours, theirs in columns.items() if ours not in _OF_CONVERSATIONS)
        outer = set[str]() if tools_in(value) is None else {"tools"}
    outer |= _heads(columns[ours] for ours in _OF_CONVERSATIONS if ours in columns)
    yield from (key for key in value if key not in outer)
    turns = value_at(value, listed)
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            yield from (f"{listed}.{key}" for key in turn if key not in of_turns)


def _heads(paths: Iterable[str]) -> set[str]:
    """The keys at which dotted paths begin."""
    return {key for path in paths for key in (path, path.partition(".")[0])}
