"""The finished dialogues of an annotation in progress, one line each, so that a killed run can resume."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from proactor.annotation.record import DialogueRecord
from proactor.engine import ProactorError, append, naming, read_regular, remove


class AnnotationError(ProactorError):
    """An annotation that cannot be made or resumed."""


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fingerprint: str


class _Windows(BaseModel):
    model_config = ConfigDict(extra="forbid")

    windows: str


_LINE: TypeAdapter[DialogueRecord | _Windows] = TypeAdapter(DialogueRecord | _Windows)


class RecordStore:
    """The records in the file ``path``: a header with the ``fingerprint`` of the settings, then a line each.

    ``windows``: hashes, on lines of their own, of the windows that were written and may be replaced.

    Drops a last line cut off by a kill. Raises AnnotationError for another fingerprint, a damaged line, or a
    link in the file's place; OSError, naming the file, where it cannot be read or written.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.records: dict[str, DialogueRecord] = {}
        self.windows: set[str] = set()
        if path.is_symlink():
            raise AnnotationError(f"{path}: is a link; an annotation writes in its own folder only")
        kept = self._read(fingerprint) if path.exists() else 0
        if kept:
            with naming(path):
                os.truncate(path, kept)
        else:
            remove(path)
            self._write(_Header(fingerprint=fingerprint).model_dump_json())

    def _read(self, fingerprint: str) -> int:
        """Read all complete lines; returns their length in bytes."""
        lines = read_regular(self.path).splitlines(keepends=True)
        kept, begun_with = 0, fingerprint
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # the line that was being written
            try:
                if number == 1:
                    begun_with = _Header.model_validate_json(line).fingerprint
                else:
                    self._keep(_LINE.validate_json(line))
            except ValidationError:
                raise AnnotationError(f"{self.path}:{number}: damaged; --fresh starts over") from None
            if begun_with != fingerprint:
                raise AnnotationError(
                    f"{self.path}: begun with another oracle, catalog or options; --fresh starts over"
                )
            kept += len(line)
        return kept

    def add(self, record: DialogueRecord) -> None:
        """Append a finished dialogue. Raises OSError, naming the file, with nothing written."""
        self._append(record)

    def note_windows(self, digest: str) -> None:
        """Append the hash of a windows.jsonl, as `add` does."""
        self._append(_Windows(windows=digest))

    def _append(self, entry: DialogueRecord | _Windows) -> None:
        self._write(entry.model_dump_json())
        self._keep(entry)

    def _keep(self, entry: DialogueRecord | _Windows) -> None:
        if isinstance(entry, DialogueRecord):
            self.records[entry.id] = entry
        else:
            self.windows.add(entry.windows)

    def _write(self, line: str) -> None:
        append(self.path, line.encode() + b"\n")
