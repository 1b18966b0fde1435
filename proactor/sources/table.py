"""Transcripts in a CSV file: one turn a row, with columns for the dialogue's id, the speaker and the text.

The columns go by common names (`COLUMNS`), in any case. Commas, semicolons, tabs or bars separate them, as
the header shows. The rows of a dialogue stay in the order of the file and need not stand together. A column
``domain`` is read too, others are counted as `ignored_keys`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proactor.files import SourceError, read_text
from proactor.sources.base import Record

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
COLUMNS = {
    "id": (
        "dialogue_id dialog_id conversation_id chat_id session_id thread_id ticket_id call_id transcript_id "
        "dialogue conversation id"
    ).split(),
    "speaker": "speaker role author sender participant from".split(),
    "text": "text content message utterance body".split(),
}
"""Names of the three columns, the first that is there counts. Blanks and dashes read as "_"."""
DELIMITERS = ",;\t|"


def is_table(file: Path) -> bool:
    """Whether a file is read by `records`."""
    return file.name.casefold().endswith(SUFFIXES)


def records(file: Path) -> Iterator[Record]:
    """The dialogues of a file as transcripts, by the first row of each. SourceError names the faulty line."""
    text = read_text(file).removeprefix("\ufeff")
    header = next(iter(text.splitlines()), "")
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    dialogues: dict[str, tuple[int, dict[str, Any]]] = {}
    try:
        names = [name.strip().casefold().replace(" ", "_").replace("-", "_") for name in next(reader, [])]
        places = {kind: _column(file, kind, names) for kind in COLUMNS}
        line = reader.line_num + 1
        for row in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise SourceError(f"{file}:{start}: {len(row)} columns, the header has {len(names)}")
            identity = row[places["id"]].strip()
            if not identity:
                raise SourceError(f"{file}:{start}: no id in column {names[places['id']]!r}")
            _, record = dialogues.setdefault(identity, (start, {"turns": []}))
            others = {f"column {name}": row[i] for i, name in enumerate(names) if i not in places.values()}
            if domain := others.pop("column domain", "").strip():
                record.setdefault("domain", domain)
            turn = {"speaker": row[places["speaker"]], "text": row[places["text"]]}
            record["turns"].append({**others, **turn})
    except csv.Error as error:
        raise SourceError(f"{file}:{reader.line_num}: not CSV ({error})") from None
    for identity, (start, record) in dialogues.items():
        yield Record(f"{file}:{start}", identity, record)


def _column(file: Path, kind: str, names: list[str]) -> int:
    """The place of a column. Raises SourceError where there is none."""
    name = next((name for name in COLUMNS[kind] if name in names), None)
    if name is None:
        raise SourceError(
            f"{file}:1: no column for the {'dialogue' if kind == 'id' else kind} "
            f"({', '.join(COLUMNS[kind])}); found {', '.join(names) or 'nothing'}"
        )
    return names.index(name)
