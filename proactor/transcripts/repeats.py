"""Conversations that come twice: under one id, or under another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proactor.dialogue import Dialogue
from proactor.files import SourceError
from proactor.sources.base import Record
from proactor.transcripts.entries import Tally
from proactor.transcripts.mapping import ImportMap
from proactor.transcripts.order import places_of


def settled(records: Sequence[Record], mapping: ImportMap, tally: Tally) -> list[Record]:
    """Records of unique ids. One that comes again unchanged is left out (`duplicates`); another one of the
    same id goes by ``mapping.same_id``: an error, or joined to the first (`conversations_joined`: split over
    files; in order, where there is one), or renamed (`ids_renamed`).
    """
    kept: dict[str, Record] = {}
    came: dict[str, list[Record]] = {}
    for record in records:
        first, earlier = kept.get(record.id), came.setdefault(record.id, [])
        same = next((other for other in earlier if _is_same(other, record, mapping)), None)
        earlier.append(record)
        if first is None:
            kept[record.id] = record
        elif same is not None and mapping.duplicates == "drop":
            tally.leave_out("duplicates", f"{record.where}: {record.id!r} is the same as {same.where}")
        elif mapping.same_id == "join":
            kept[record.id] = _joined(first, record, tally)
            tally.counters["conversations_joined"] += 1
        elif mapping.same_id == "rename":
            number = next(n for n in range(2, len(records) + 2) if f"{record.id}-{n}" not in kept)
            kept[f"{record.id}-{number}"] = replace(record, id=f"{record.id}-{number}")
            tally.counters["ids_renamed"] += 1
        else:
            raise SourceError(
                f"{record.where}: conversation {record.id!r} appears twice (first in {first.where}); "
                "--same-id join continues the first, rename makes another one of it"
            )
    return list(kept.values())


def without_duplicates(
    dialogues: Sequence[tuple[str, Dialogue]], mapping: ImportMap, tally: Tally
) -> list[tuple[str, Dialogue]]:
    """(place, dialogue) without those that have the turns and actions of an earlier one (`duplicates`): a
    split by ids would put one into training and the other into the test.
    """
    if mapping.duplicates == "keep":
        return list(dialogues)
    seen: dict[Any, str] = {}
    kept = []
    for where, dialogue in dialogues:
        content = dialogue.model_copy(update={"id": ""}).model_dump_json()
        if content in seen:
            tally.leave_out("duplicates", f"{where}: {dialogue.id!r} is the same as {seen[content]!r}")
        else:
            seen[content] = dialogue.id
            kept.append((where, dialogue))
    return kept


def _is_same(one: Record, other: Record, mapping: ImportMap) -> bool:
    """Whether two records say the same; to be joined, parts that were said at other times are two."""
    return one.value == other.value and (mapping.same_id != "join" or one.order == other.order)


def _joined(first: Record, second: Record, tally: Tally) -> Record:
    """The first record with the turns of the second behind its own, or among them, as they are ordered."""
    key = next((k for k in ("turns", "messages") if isinstance(first.value.get(k), list)), None)
    if key is None or not isinstance(second.value.get(key), list):
        raise SourceError(f"{second.where}: conversation {first.id!r} is of another form in {first.where}")
    if second.value.get("references") or second.value.get("withdrawn"):
        raise SourceError(
            f"{second.where}: conversation {first.id!r} continues {first.where} and brings actions "
            "whose turns are counted from its own beginning; join the two by hand"
        )
    turns, order = [*first.value[key], *second.value[key]], (*first.order, *second.order)
    places = _places(first, second) if order else list(range(len(turns)))
    tally.counters["turns_reordered"] += sum(at != place for at, place in enumerate(places))
    value = {**second.value, **first.value, key: [turns[place] for place in places]}
    offers = [
        record.value["tools"] for record in (first, second) if isinstance(record.value.get("tools"), list)
    ]
    if len(offers) > 1:
        value["tools"] = [*offers[0], *(tool for tool in offers[1] if tool not in offers[0])]
    return Record(first.where, first.id, value, tuple(order[place] for place in places if order))


def _places(first: Record, second: Record) -> list[int]:
    """The places of the turns of both in their order. Raises SourceError where turns of both have one value,
    and do not just follow on each other: parts that are numbered each from its beginning have no order.
    """
    what = f"{second.where}: conversation {first.id!r} continues {first.where}"
    try:
        places = places_of([*first.order, *second.order])
    except ValueError as error:
        raise SourceError(f"{what}, but not in one order: {error}") from None
    both = next((value for value in second.order if value in first.order), None)
    if both is not None and places != sorted(places):
        raise SourceError(
            f"{what}, and both have a turn at {both!r}: which comes first is not known; without the column "
            "`order`, and with files in their order, they are joined as they stand"
        )
    return places
