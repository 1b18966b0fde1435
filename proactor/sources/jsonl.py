"""Our own JSONL, and transcripts: JSONL, chat messages, CSV.

A file, or a folder with ``windows.jsonl`` or other JSONL files (gzip or plain), one dialogue per line in one
of the forms of `sources.transcript`, or with CSV files (`sources.table`), and the tools beside them in
``catalog.json``. Files of a kind that is not read because there are such of an earlier one are counted
(`files_ignored`). A chat without an id has a hash of its line as id. One that comes again is left out
(`repeated_chats`), since a split by ids would put one into training and the other into the test. A file may
also be the log of an agent at work (`sources.agent_log`), whose lines are events.

An action of a tool that the catalog lacks is an error, or with ``unknown_tools=drop`` left out and counted.
`Corpus.losses` names each action that was left out, `Corpus.places` the line of each dialogue without an id,
`Corpus.dropped` the dialogues of one speaker and the repeated chats.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from proactor.catalogs import propose, read_catalog
from proactor.catalogs.proactor import NAME
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.files import EncodingError, SourceError, find_files, text_lines, valid_utf8
from proactor.sources import action_log, agent_log, base, messages, table
from proactor.sources.base import Line, Malformed, Record, Subset
from proactor.sources.corpus import Corpus, make_corpus
from proactor.sources.transcript import TranscriptOptions, TranscriptReader

_KINDS = (
    ("windows.jsonl",),
    ("windows.jsonl.gz",),
    ("*.jsonl", "*.jsonl.gz"),
    tuple(f"*{suffix}" for suffix in table.SUFFIXES),
)
"""Files of a folder by kind; only those of the first kind that is there are read."""
_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("(?:[^"\\]|\\.)*")')


class JsonlOptions(TranscriptOptions):
    """How JSONL is read."""

    catalog: str | None = Field(
        default=None,
        description="tools, of any format that `read_catalog` knows; default: catalog.json beside the file",
    )
    trust_code: bool = Field(
        default=False, description="whether a `catalog` that is a Python module may run, to be read"
    )
    unknown_tools: Literal["error", "drop"] = Field(
        default="error", description="what becomes of an action whose tool is not in the catalog"
    )


OPTIONS = JsonlOptions


def load(path: Path, subset: Subset, options: JsonlOptions) -> Corpus:
    """Reads a folder or file; see `sources.load`. The limit counts lines, also those dropped afterwards."""
    try:
        return _load(path, subset, options)
    except EncodingError as error:
        raise EncodingError(f"{error}, or let `proactor import` read it, which finds its encoding") from None


def _load(path: Path, subset: Subset, options: JsonlOptions) -> Corpus:
    counters: Counter[str] = Counter()
    files = _files(path, counters)
    reader = _Reader(path if path.is_dir() else path.parent, options, counters)
    entries: list[Line] | list[Record]
    places: dict[str, str] = {}
    if table.is_table(files[0]):
        entries = subset.choose(record for file in files for record in table.records(file))
    elif agent_log.is_agent_log(files[0]):
        entries = subset.choose(record for file in files for record in agent_log.records(file, counters))
    else:
        repeats: list[_Repeat] = []
        entries = subset.choose(_lines(files, repeats))
        for repeat in repeats:
            if subset.includes(repeat.id):
                counters["repeated_chats"] += 1
                reader.dropped[repeat.name] = f"the same chat as {repeat.first}"
                places[repeat.name] = repeat.where
    dialogues = []
    losses: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        record = entry.parse()
        reader.losses = []
        dialogue = base.convert(entry.where, {**record, "id": entry.id}, reader.dialogue, counters)
        if record.get("id") is None and messages.is_chat(record):
            places[dialogue.id] = entry.where
        if reader.keeps(entry.where, dialogue):
            dialogues.append(dialogue)
            losses |= {dialogue.id: tuple(reader.losses)} if reader.losses else {}
    corpus = make_corpus(reader.catalog or Catalog(tools=()), dialogues, counters, reader.dropped)
    return replace(corpus, losses=losses, places=places)


def _files(path: Path, counters: Counter[str]) -> list[Path]:
    """The file, or those of a folder that are of the first of `_KINDS` in it, sorted. Raises SourceError."""
    by_kind = [sorted({file for pattern in kind for file in path.glob(pattern)}) for kind in _KINDS]
    if not path.is_dir() or not any(by_kind):
        return find_files(path, *(pattern for kind in _KINDS for pattern in kind))
    found = next(filter(None, by_kind))
    counters["files_ignored"] += len({file for files in by_kind for file in files}) - len(found)
    return found


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A chat without an id that comes again: the id of the first, a name of its own, and both places."""

    id: str
    name: str
    where: str
    first: str


def _lines(files: Iterable[Path], repeats: list[_Repeat]) -> Iterator[Line]:
    """Lines with their ids, without ``repeats``, which gets them. A line is parsed for its id only where that
    is not its first key: turns may have ids of their own.
    """
    firsts: dict[str, Line] = {}
    times: Counter[str] = Counter()
    for file in files:
        for number, text in text_lines(file):
            line = Line(file, number, "", text)
            if match := _ID.match(text):
                try:
                    identity = json.loads(match[1].decode("utf-8", "replace"), strict=False)
                except json.JSONDecodeError as error:
                    raise SourceError(f"{line.where}: not JSON ({error.msg})") from None
            else:
                record = line.parse()
                identity = record.get("id")
                if identity is None and messages.is_chat(record):
                    content = _content(record)
                    if (first := firsts.get(content)) is not None:
                        times[content] += 1
                        again = f"{first.id}-{times[content] + 1}"
                        repeats.append(_Repeat(first.id, again, line.where, first.where))
                        continue
                    identity = content_id(text)
                    firsts[content] = replace(line, id=identity)
            if (name := id_text(identity)) is None:
                raise SourceError(f"{line.where}: no id")
            yield Line(file, number, name, text)


def _content(record: dict[str, Any]) -> str:
    """A hash of what is read of a chat: two that differ in the order of keys, or in keys that are not read,
    are the same.
    """
    read = {key: value for key, value in record.items() if key == "messages" or key in Dialogue.model_fields}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def content_id(text: bytes) -> str:
    """The id of a conversation without one: a hash of its text."""
    return hashlib.sha256(text).hexdigest()[:12]


def id_text(identity: object) -> str | None:
    """A conversation's id as text; None for a value that is no id."""
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        return None
    return valid_utf8(str(identity))


class _Reader(TranscriptReader):
    """Builds dialogues and checks them against the catalog."""

    def __init__(self, folder: Path, options: JsonlOptions, counters: Counter[str]) -> None:
        super().__init__(options, counters)
        self.unknown_tools = options.unknown_tools
        self.file = Path(options.catalog) if options.catalog else folder / NAME
        self.catalog: Catalog | None = None
        if options.catalog or self.file.is_file():
            proposal = propose(read_catalog(options.catalog or self.file, trust_code=options.trust_code))
            self.catalog = proposal.catalog
            counters["effects_proposed"] += len(proposal.open_suggestions)
        else:
            counters["no_catalog"] += 1

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of any form, checked against the catalog."""
        return self._fitted(super().dialogue(record, counters))

    def _fitted(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue with actions as the tools have them."""
        if self.catalog is None:
            marks = (*dialogue.references, *dialogue.withdrawn)
            if named := (*(mark.name for mark in marks), *dialogue.tools):
                raise Malformed(
                    f"names tools ({named[0]!r}), but there is no {self.file}; `proactor catalog` makes one "
                    "of your tools' definitions"
                )
            return dialogue
        drop = self.unknown_tools == "drop"
        return action_log.fitted(dialogue, self.catalog, self.file, drop, self.counters, self.losses)
