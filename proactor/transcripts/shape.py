"""Objects of a file as records of our own forms, which `sources.transcript` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from proactor.files import SourceError
from proactor.sources import messages, table
from proactor.sources.base import Record
from proactor.sources.jsonl import content_id, id_text
from proactor.sources.transcript import Speakers
from proactor.transcripts.entries import Entry, FileRead, Tally, value_at
from proactor.transcripts.guess import column
from proactor.transcripts.mapping import Columns, ImportMap
from proactor.transcripts.order import places_of

_ROLES = {"user": "user", "agent": "assistant"}


def records_of(read: FileRead, mapping: ImportMap, tally: Tally) -> list[Record]:
    """The conversations of a file, each as a transcript or as chat messages. ``mapping`` is complete
    (`guess`). Raises SourceError, naming the place, unless ``mapping.broken`` drops what cannot be read.
    """
    columns = _named(mapping.columns, read)
    if mapping.form == "rows":
        made = [
            partial(_ordered, record, columns, mapping.speakers, tally)
            for record in _grouped(read, columns, mapping, tally)
        ]
    else:
        made = [partial(_conversation, entry, columns, mapping, tally) for entry in read.entries]
    records = []
    for make in made:
        try:
            records.append(make())
        except SourceError as error:
            if mapping.broken == "error":
                raise
            tally.leave_out("broken_conversations", str(error))
    return records


def _named(columns: Columns, read: FileRead) -> Columns:
    """The columns as the header of a table spells them."""
    if read.kind != "table":
        return columns
    spelled = {k: column(read.names, v) for k, v in columns.model_dump(exclude_none=True).items()}
    return columns.model_copy(update=spelled)


def _grouped(read: FileRead, columns: Columns, mapping: ImportMap, tally: Tally) -> list[Record]:
    def rows() -> Iterator[table.Row]:
        for entry in read.entries:
            identity = id_text(value_at(entry.value, columns.conversation))
            if identity is None:
                problem = f"{entry.where}: no id in column {columns.conversation!r}"
                if mapping.broken == "error":
                    raise SourceError(problem)
                tally.leave_out("rows_without_id", problem)
                continue
            yield entry.where, identity.strip(), _text(value_at(entry.value, columns.domain)), entry.value

    return table.grouped(rows())


def _conversation(entry: Entry, columns: Columns, mapping: ImportMap, tally: Tally) -> Record:
    identity = id_text(value_at(entry.value, columns.conversation)) or entry.key
    if not identity:
        text = json.dumps(entry.value, sort_keys=True, ensure_ascii=False)
        identity = content_id(text.encode("utf-8", "surrogatepass"))
    domain = _text(value_at(entry.value, columns.domain))
    kept: dict[str, Any] = {"domain": domain} if domain else {}
    if mapping.form in ("chat", "turns"):
        return Record(entry.where, identity, {**entry.value, **kept})
    turns = value_at(entry.value, columns.turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise SourceError(f"{entry.where}: {columns.turns} is not a list of objects")
    if (tools := tools_in(entry.value)) is not None:
        kept["tools"] = tools
    return _ordered(Record(entry.where, identity, {"turns": turns, **kept}), columns, mapping.speakers, tally)


def tools_in(value: dict[str, Any]) -> list[Any] | None:
    """The tools on offer in a conversation, names or definitions; None where ``tools`` is anything else."""
    listed = value.get("tools")
    if isinstance(listed, list) and all(isinstance(messages.tool_name(tool), str) for tool in listed):
        return listed
    return None


def _ordered(record: Record, columns: Columns, speakers: Speakers, tally: Tally) -> Record:
    """A record whose turns are still theirs, with turns, or where tools are called messages, of our form."""
    theirs = record.value["turns"]
    values: list[str] = []
    if (order := columns.order) is not None:
        values = [_text(value_at(turn, order)) for turn in theirs]
        try:
            places = places_of(values)
        except ValueError as error:
            raise SourceError(f"{record.where}: conversation {record.id!r}, order={order}: {error}") from None
        tally.counters["turns_reordered"] += sum(at != place for at, place in enumerate(places))
        theirs, values = [theirs[place] for place in places], [values[place] for place in places]
    kept = {key: value for key, value in record.value.items() if key != "turns"}
    if columns.calls is None and columns.tool is None:
        kept["turns"] = [_turn(turn, columns) for turn in theirs]
    else:
        kept["messages"] = [_message(turn, columns, speakers) for turn in theirs]
    return Record(record.where, record.id, kept, tuple(values))


def _turn(turn: dict[str, Any], columns: Columns) -> dict[str, Any]:
    return {"speaker": value_at(turn, columns.speaker), "text": _text(value_at(turn, columns.text))}


def _message(turn: dict[str, Any], columns: Columns, speakers: Speakers) -> dict[str, Any]:
    """A turn as a chat message with its calls. A turn without a speaker that calls a tool is the agent's."""
    calls = _parsed(value_at(turn, columns.calls)) or []
    if tool := _text(value_at(turn, columns.tool)):
        calls = [{"name": tool, "arguments": value_at(turn, columns.arguments)}]
    name = value_at(turn, columns.speaker)
    if calls and not name:
        name = "assistant"
    role = speakers.named(name) if isinstance(name, str) else None
    given = _ROLES.get(role or "", name)
    text = value_at(turn, columns.text)
    content = text if isinstance(text, list) else _text(text)
    return {"role": given, "content": content, "tool_calls": calls}


def _parsed(calls: object) -> object:
    """Calls in a cell of a table are JSON text; what is none is refused later, by its place."""
    try:
        return json.loads(calls) if isinstance(calls, str) and calls.strip() else calls
    except (ValueError, RecursionError):
        return calls


def _text(value: object) -> str:
    """A value as text; nothing is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else messages.value_text(value)
