"""What a file holds, before anybody asks what it means: the rows of a table, or JSON objects, each with its
place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from proactor.files import SourceError, find_files, parse_json, read_bytes
from proactor.sources import table
from proactor.sources.table import COLUMNS, find_name
from proactor.transcripts.corpora import corpus_of
from proactor.transcripts.encoding import decode
from proactor.transcripts.mapping import ImportMap

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TURNS = (
    "turns messages conversation conversations dialogue dialog utterances events log chat transcript history"
).split()
"""Names of the list of turns in a conversation."""

Kind = Literal["table", "lines", "json"]


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a file. ``key``: its name there, "" where it has none."""

    where: str
    value: dict[str, Any]
    key: str = ""


@dataclass(slots=True)
class Tally:
    """What was counted while reading, and in ``problems`` one line on each thing that was left out."""

    counters: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def leave_out(self, counter: str, problem: str) -> None:
        """Count and name a thing that is left out."""
        self.counters[counter] += 1
        self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file that was read. ``names``: the columns of its header, or the keys of its first object."""

    file: Path
    kind: Kind
    encoding: str
    names: tuple[str, ...]
    entries: tuple[Entry, ...]


def files_of(paths: Iterable[Path], tally: Tally) -> list[Path]:
    """The files at ``paths``; of a folder those with a known suffix, sorted, others are `files_ignored`.

    Raises SourceError for a path that is not there, or a folder without any.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files += find_files(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if file.is_file()]
        known = [file for file in inside if _stem_suffix(file)[1] in SUFFIXES]
        if not known:
            raise SourceError(f"{path}: no {', '.join(SUFFIXES)} file (plain or .gz) in it")
        tally.counters["files_ignored"] += len(inside) - len(known)
        files += known
    if twice := next((file for i, file in enumerate(files) if file in files[:i]), None):
        raise SourceError(f"{twice}: given twice")
    return files


def read_file(file: Path, mapping: ImportMap, tally: Tally) -> FileRead:
    """The objects of a file. Raises SourceError, naming the line, unless ``mapping.broken`` drops lines."""
    text, encoding = decode(read_bytes(file), file, mapping.encoding, tally.counters)
    text = text.removeprefix("\ufeff")
    kind = _kind(file, text)
    if kind == "table":
        names, entries = _rows(file, text, mapping, tally)
    elif kind == "lines":
        entries = list(_lines(file, text, mapping, tally))
        names = list(entries[0].value) if entries else []
    else:
        value = parse_json(text.encode("utf-8", "surrogatepass"), file)
        entries = list(_objects(file, value, mapping.columns.conversations))
        names = list(entries[0].value) if entries else []
    if not entries:
        tally.counters["files_empty"] += 1
    return FileRead(file, kind, encoding, tuple(names), tuple(entries))


def turns_key(value: dict[str, Any]) -> str | None:
    """The key of the list of turns in a conversation, by its name, else by what is in it; None: no list."""
    by_name = [name for name in TURNS if name in value]
    return next((key for key in [*by_name, *value] if _has_turns(value[key])), None)


def _has_turns(listed: object) -> bool:
    """Whether something is a list of objects with a speaker and a text."""
    first = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(first, dict):
        return False
    return all(find_name(COLUMNS[kind], first) is not None for kind in ("speaker", "text"))


def _stem_suffix(file: Path) -> tuple[str, str]:
    name = file.name.casefold().removesuffix(".gz")
    return Path(name).stem, Path(name).suffix


def _kind(file: Path, text: str) -> Kind:
    suffix = _stem_suffix(file)[1]
    if suffix in (".csv", ".tsv"):
        return "table"
    if suffix in (".jsonl", ".ndjson"):
        return "lines"
    head = text.lstrip()
    if suffix != ".json" and not head.startswith(("{", "[")):
        return "table"
    first, _, rest = head.partition("\n")
    return "lines" if head.startswith("{") and rest.strip() and _is_json(first) else "json"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _rows(file: Path, text: str, mapping: ImportMap, tally: Tally) -> tuple[list[str], list[Entry]]:
    lines = table.rows(file, text, mapping.delimiter)
    _, names = next(lines)
    entries = []
    for number, cells in lines:
        row: dict[str, Any] = {}
        for name, cell in zip(names, cells, strict=True):
            row.setdefault(name, cell)  # the first column of a name counts
        entries.append(Entry(f"{file}:{number}", row))
    return names, entries


def _lines(file: Path, text: str, mapping: ImportMap, tally: Tally) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            tally.counters["empty_lines"] += bool(line) or number <= text.count("\n")
            continue
        try:
            value = parse_json(line.encode("utf-8", "surrogatepass"), file, number)
            if not isinstance(value, dict):
                raise SourceError(f"{file}:{number}: not an object")
        except SourceError as error:
            if mapping.broken == "error":
                raise SourceError(f"{error}; --broken drop leaves such lines out, counted") from None
            tally.leave_out("broken_lines", str(error))
            continue
        yield Entry(f"{file}:{number}", value)


def _objects(file: Path, value: Any, place: str | None) -> Iterator[Entry]:
    """The conversations of a JSON file: a list of objects, an object of objects, or one alone."""
    where = str(file)
    if place is not None:
        value, where = value_at(value, place), f"{file}: {place}"
        if value is None:
            raise SourceError(f"{file}: nothing at conversations={place}")
    elif isinstance(value, dict) and not _is_conversation(value):
        lists = [key for key, inner in value.items() if _is_objects(inner)]
        if len(lists) > 1:
            raise SourceError(
                f"{file}: several lists of objects ({', '.join(lists)}): --columns conversations=KEY chooses"
            )
        if lists:
            value, where = value[lists[0]], f"{file}: {lists[0]}"
    if isinstance(value, dict) and not _is_conversation(value) and _is_objects([*value.values()]):
        for key, inner in value.items():
            yield Entry(f"{where} {key!r}", inner, str(key))
    elif isinstance(value, dict):
        yield Entry(where, value, _stem_suffix(file)[0])
    elif isinstance(value, list):
        for position, inner in enumerate(value, start=1):
            if not isinstance(inner, dict):
                raise SourceError(f"{where}: item {position} is not an object")
            yield Entry(f"{where}: item {position}", inner)
    else:
        raise SourceError(f"{where}: neither an object nor a list of them")


def _is_conversation(value: dict[str, Any]) -> bool:
    return turns_key(value) is not None or corpus_of(value) is not None


def _is_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(inner, dict) for inner in value)


def value_at(value: Any, path: str | None) -> Any:
    """What is at a dotted path of keys and positions; None where there is nothing. A key may hold dots."""
    if path is None:
        return None
    if isinstance(value, dict) and path in value:
        return value[path]
    head, dot, rest = path.partition(".")
    if isinstance(value, list) and head.isdecimal() and int(head) < len(value):
        inner = value[int(head)]
    elif isinstance(value, dict) and head in value:
        inner = value[head]
    else:
        return None
    return value_at(inner, rest) if dot else inner
