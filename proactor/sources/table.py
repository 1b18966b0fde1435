"""Transcripts in a CSV file: one turn a row, with columns for the dialogue's id, the speaker and the text.

The columns go by common names (`COLUMNS`), in any case. Commas, semicolons, tabs or bars separate them, as
the header shows. The rows of a dialogue stay in the order of the file and need not stand together. A column
``domain`` is read too, others are counted as `ignored_keys`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from proactor.files import SourceError, read_text
from proactor.sources.base import Record

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
COLUMNS = {
    "id": (
        "dialogue_id dialog_id conversation_id chat_id session_id thread_id ticket_id call_id transcript_id "
        "convo_id dialogue conversation id"
    ).split(),
    "speaker": "speaker role author sender participant from".split(),
    "text": "text content message utterance body value".split(),
}
"""Names of the three columns, the first that is there counts; as `plain_name` compares them."""
DELIMITERS = ",;\t|"

Row = tuple[str, str, str, dict[str, Any]]
"""(place, dialogue, domain, turn) of a row."""


def is_table(file: Path) -> bool:
    """Whether a file is read by `records`."""
    return file.name.casefold().endswith(SUFFIXES)


def records(file: Path) -> Iterator[Record]:
    """The dialogues of a file as transcripts, by the first row of each. SourceError names the faulty line."""
    lines = rows(file, read_text(file))
    _, names = next(lines)
    columns = {kind: _column(file, kind, names) for kind in COLUMNS}
    domain = find_name(("domain",), names)
    used = {*columns.values(), domain}

    def turns() -> Iterator[Row]:
        for number, cells in lines:
            where, row = f"{file}:{number}", dict(zip(names[::-1], cells[::-1]))  # the first of a name counts
            identity = row[columns["id"]].strip()
            if not identity:
                raise SourceError(f"{where}: no id in column {columns['id']!r}")
            others = {f"column {name}": cell for name, cell in row.items() if name not in used}
            turn = {"speaker": row[columns["speaker"]], "text": row[columns["text"]]}
            yield where, identity, row[domain].strip() if domain else "", {**others, **turn}

    yield from grouped(turns())


def grouped(rows: Iterable[Row]) -> list[Record]:
    """Rows as transcripts, one a dialogue, by the place of its first row."""
    found: dict[str, Record] = {}
    for where, identity, domain, turn in rows:
        record = found.setdefault(identity, Record(where, identity, {"turns": []}))
        if domain:
            record.value.setdefault("domain", domain)
        record.value["turns"].append(turn)
    return list(found.values())


def rows(file: Path, text: str, delimiter: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the header and of each row that is not blank, all of one length. Raises SourceError.

    ``delimiter``: default, the one of `DELIMITERS` that the header has most of.
    """
    text = text.removeprefix("\ufeff")
    header = next(iter(text.splitlines()), "")
    sign = delimiter or max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        yield 1, names
        line = reader.line_num + 1
        for row in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise SourceError(f"{file}:{start}: {_lengths(row, names, sign)}")
            yield start, row
    except csv.Error as error:
        raise SourceError(f"{file}:{reader.line_num}: not CSV ({error})") from None


def _lengths(row: list[str], names: list[str], sign: str) -> str:
    """How many columns a row has, the header, and the row by another delimiter, where that fits."""
    told = f"{len(row)} columns, the header has {len(names)}"
    others = (d for d in DELIMITERS if d != sign and sign.join(row).count(d) == len(names) - 1 > 0)
    return told + "".join(f"; by {other!r} the line has as many" for other in others)


def plain_name(name: str) -> str:
    """The name of a column as it is compared: without case, blanks, dashes and underscores."""
    return name.strip().casefold().translate(str.maketrans("", "", " -_"))


def find_name(candidates: Iterable[str], names: Collection[str]) -> str | None:
    """The first of ``names`` that is the first candidate to be found; None where there is none."""
    known = {plain_name(name): name for name in reversed(list(names))}
    return next((known[plain_name(name)] for name in candidates if plain_name(name) in known), None)


def _column(file: Path, kind: str, names: list[str]) -> str:
    """The name of a column. Raises SourceError where there is none."""
    name = find_name(COLUMNS[kind], names)
    if name is None:
        raise SourceError(
            f"{file}:1: no column for the {'dialogue' if kind == 'id' else kind} "
            f"({', '.join(COLUMNS[kind])}); found {', '.join(names) or 'nothing'}"
        )
    return name
