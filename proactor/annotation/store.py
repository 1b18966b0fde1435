"""The finished dialogues of an annotation in progress, one line each, so that a killed run can resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from proactor.annotation.record import DialogueRecord
from proactor.engine import ProactorError


class AnnotationError(ProactorError):
    """An annotation that cannot be made or resumed."""


class RecordStore:
    """The records in the file ``path``: a header with the ``fingerprint`` of the settings, then a line each.

    Drops a last line cut off by a kill. Raises AnnotationError for another fingerprint or a damaged line.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.records: dict[str, DialogueRecord] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read(fingerprint) if path.is_file() else 0
        self._file: IO[bytes] = path.open("r+b" if kept else "wb")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._write(json.dumps({"fingerprint": fingerprint}))

    def _read(self, fingerprint: str) -> int:
        """Read all complete lines; returns their length in bytes."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = 0
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # the line that was being written
            try:
                if number == 1:
                    if json.loads(line)["fingerprint"] != fingerprint:
                        raise AnnotationError(
                            f"{self.path}: begun with another oracle, catalog or options; --fresh starts over"
                        )
                else:
                    record = DialogueRecord.model_validate_json(line)
                    self.records[record.id] = record
            except (json.JSONDecodeError, KeyError, TypeError, ValidationError):
                raise AnnotationError(f"{self.path}:{number}: damaged; --fresh starts over") from None
            kept += len(line)
        return kept

    def add(self, record: DialogueRecord) -> None:
        """Append a finished dialogue, flushed to the operating system."""
        self.records[record.id] = record
        self._write(record.model_dump_json())

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
