"""A file of windows under review: its lines, and one line replaced at a time.

A line is one dialogue and has a version, the hash of its bytes. Whoever changes a line says which version was
looked at, and is refused where the file has another by now: another tab, reviewer or editor was faster. All
other lines keep their bytes. The file is written anew beside its place and renamed into it, under a lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.engine import ProactorError, open_atomic
from proactor.files import SourceError, read_bytes
from proactor.sole_writer import sole_writer
from proactor.sources import reviewed
from proactor.sources.action_log import values_as_text
from proactor.sources.base import Line, Malformed, convert

WINDOWS = "windows.jsonl"
KINDS = ("references", "withdrawn")
"""Keys of a dialogue that hold windows."""


class ReviewError(ProactorError):
    """Windows that cannot be reviewed, or a change that cannot be made. One line."""


class Conflict(ReviewError):
    """A change of a dialogue that has changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One dialogue of the file. ``record``: its line as parsed; ``dialogue``: what is known of it, with all
    windows as they stand, whatever was decided.
    """

    line: bytes
    record: Mapping[str, Any]
    dialogue: Dialogue

    @property
    def version(self) -> str:
        """Hash of the line, 16 hex digits."""
        return version_of(self.line)


def version_of(line: bytes) -> str:
    """The version of a line."""
    return hashlib.sha256(line).hexdigest()[:16]


class WindowsFile:
    """The windows in ``path``, a file or a folder with a ``windows.jsonl``; a link is followed once, here.

    May be used by several threads. Raises SourceError, naming file and line, for what cannot be read, is no
    dialogue with windows, or has an id twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = _file_of(path)
        self._guard = threading.RLock()
        self._stamp: tuple[int, ...] = ()
        self._entries: dict[str, Entry] = {}
        self._by_line: dict[bytes, Entry] = {}
        self._ending = b"\n"
        self._replaced: dict[tuple[str, str], bytes] = {}
        self.entries()

    def entries(self) -> Mapping[str, Entry]:
        """The dialogues by id, in order; read again where the file has changed. Raises SourceError."""
        with self._guard:
            if _stamp(self.path) != self._stamp:
                self._read()
            return dict(self._entries)

    def entry(self, name: str) -> Entry:
        """The dialogue with the id ``name``. Raises Conflict where the file does not have it (any more)."""
        found = self.entries().get(name)
        if found is None:
            raise Conflict(f"dialogue {name!r} is not in {self.path} any more")
        return found

    def change(self, name: str, version: str, make: Callable[[Entry], Mapping[str, Any]]) -> Entry:
        """Put the record that ``make`` makes of a dialogue's entry in its place.

        Raises Conflict where the dialogue has another ``version``; what ``make`` raises; SourceError for a
        record that is no dialogue; WriterError or OSError where the file cannot be written. Nothing is
        written then.
        """
        with self._locked(name, version) as before:
            line = dump(make(before))
            if line == before.line:
                return before
            return self._put(name, before, line)

    def undo(self, name: str, version: str, to: str) -> Entry:
        """Bring back the line that had the version ``to``, byte by byte. Raises as `change`, and ReviewError
        for a version that this process has not replaced.
        """
        with self._locked(name, version) as before:
            line = self._replaced.get((name, to))
            if line is None:
                raise ReviewError("there is nothing to undo: the change was made in another session")
            return self._put(name, before, line)

    @contextmanager
    def _locked(self, name: str, version: str) -> Iterator[Entry]:
        with self._guard, self._lock():
            before = self.entry(name)
            if before.version != version:
                raise Conflict(
                    f"dialogue {name!r} was changed meanwhile{_by_whom(before)}; nothing was saved"
                )
            yield before

    def _lock(self) -> AbstractContextManager[None]:
        """The lock of the folder where `annotate` may write, else one of this file's own."""
        if self.path.name == WINDOWS:
            return sole_writer(self.path.parent)
        return sole_writer(self.path, self.path.with_name(f".{self.path.name}.lock"))

    def _put(self, name: str, before: Entry, line: bytes) -> Entry:
        place = list(self._entries).index(name)
        after = _entry(Line(self.path, place + 1, name, line))
        lines = [after.line if key == name else entry.line for key, entry in self._entries.items()]
        with open_atomic(self.path) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(self.path.stat().st_mode))
            file.write(b"\n".join(lines) + self._ending)
        self._replaced[name, before.version] = before.line
        self._entries[name] = after
        self._stamp = _stamp(self.path)
        return after

    def _read(self) -> None:
        stamp = _stamp(self.path)
        data = read_bytes(self.path)
        lines = data.split(b"\n")
        self._ending = b"" if lines[-1] else b"\n"
        if not lines[-1]:
            lines.pop()
        entries: dict[str, Entry] = {}
        for number, text in enumerate(lines, start=1):
            # one whose line has not changed is not made again
            entry = self._by_line.get(text) or _entry(Line(self.path, number, "", text))
            if entry.dialogue.id in entries:
                raise SourceError(f"{self.path}:{number}: dialogue {entry.dialogue.id!r} appears twice")
            entries[entry.dialogue.id] = entry
        if not entries:
            raise SourceError(f"{self.path}: no dialogues")
        self._entries, self._stamp = entries, stamp
        self._by_line = {entry.line: entry for entry in entries.values()}


def dump(record: Mapping[str, Any]) -> bytes:
    """A record as `annotate` writes it; in ASCII where it holds half of a character, which is no UTF-8."""
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(record, separators=(",", ":")).encode()


def _entry(line: Line) -> Entry:
    """The entry of a line. Raises SourceError, naming file and line."""
    if not line.text.strip():
        raise SourceError(f"{line.where}: empty line")
    record = line.parse()
    return Entry(line.text, record, convert(line.where, record, _dialogue, Counter()))


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    """The dialogue of a record, without keys that a `Dialogue` does not have, values as text. Raises
    Malformed.
    """
    turns = record.get("turns")
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "index" in t for t in turns):
        raise Malformed("no windows as `proactor annotate` writes them: its turns have no `index`")
    for window in (
        record,
        *(w for kind in (*KINDS, reviewed.REMOVED) for w in reviewed.windows_in(record, kind)),
    ):
        if isinstance(window, dict):
            reviewed.review_of(window)
    removed = record.get(reviewed.REMOVED, [])
    if not isinstance(removed, list) or not all(
        isinstance(w, dict) and isinstance(w.get("id"), str) for w in removed
    ):
        raise Malformed(f"{reviewed.REMOVED}: not a list of windows, each with an `id` that is text")
    known = values_as_text(_known_keys(record, Dialogue), counters)
    parts: dict[str, type[BaseModel]] = {"turns": Turn, "references": Reference, "withdrawn": Reference}
    for key, fields in parts.items():
        if isinstance(known.get(key), list):
            known[key] = [_known_keys(v, fields) if isinstance(v, dict) else v for v in known[key]]
    return Dialogue.model_validate(known)


def _known_keys(value: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key in kind.model_fields}


def _file_of(path: Path) -> Path:
    """The file of windows that ``path`` names. Raises SourceError where there is none."""
    file = path / WINDOWS if path.is_dir() else path
    if not file.is_file():
        raise SourceError(f"{file}: no such file; WINDOWS is what `proactor annotate` wrote (its --out)")
    if file.suffix == ".gz":
        raise SourceError(f"{file}: packed; unpack it to review it")
    return file.resolve()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file any more") from None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _by_whom(entry: Entry) -> str:
    """ " by NAME" of the latest review in an entry that has one."""
    marks = [
        entry.record,
        *(w for kind in (*KINDS, reviewed.REMOVED) for w in reviewed.windows_in(entry.record, kind)),
    ]
    reviews = [review for mark in marks if (review := reviewed.review_of(mark)) is not None]
    latest = max(reviews, key=lambda review: review.at, default=None)
    return f" (last by {latest.by}, {latest.at})" if latest else ""
