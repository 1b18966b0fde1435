"""Shared by all readers: options, the subset to read, lines and records, and how these become dialogues."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.dialogue import Dialogue, Turn
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, first_problem, parse_json, text_lines
from proactor.sources.corpus import Corpus, SelectionError, Split, make_corpus, sample, split_of

Options = TypeVar("Options", bound=BaseModel)


class Malformed(SourceError):
    """A record that a reader cannot use; `convert` puts its file and line in front."""


class NoOptions(BaseModel):
    """A reader without options; unknown ones are still refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def validate_options(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """``values`` as the options of a reader. Raises SelectionError for an unknown or wrong one."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise SelectionError(f"option {first_problem(error, top=kind.__name__)}") from None


# -- lines and records ---


@dataclass(frozen=True, slots=True)
class Line:
    """One dialogue as a line of a JSONL file, not parsed yet."""

    file: Path
    number: int
    id: str
    text: bytes

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.number}"

    def parse(self) -> dict[str, Any]:
        """The JSON object of the line. Raises SourceError for anything else."""
        record = parse_json(self.text, self.file, self.number)
        if not isinstance(record, dict):
            raise SourceError(f"{self.where}: not an object")
        return record


@dataclass(frozen=True, slots=True)
class Record:
    """One dialogue of a file that was parsed as a whole; ``where`` names its place there. ``order``: what its
    turns were sorted by, one value each, where they were.
    """

    where: str
    id: str
    value: dict[str, Any]
    order: tuple[str, ...] = ()

    def parse(self) -> dict[str, Any]:
        """The record itself."""
        return self.value


Entry = TypeVar("Entry", Line, Record)


@dataclass(frozen=True, slots=True)
class Subset:
    """Which dialogues to read: of ``split`` (None: all), at most ``limit``, sampled by ``seed``."""

    split: Split | None = None
    limit: int | None = None
    seed: int = 0

    def includes(self, dialogue_id: str) -> bool:
        """Whether the dialogue is in the split."""
        return self.split is None or split_of(dialogue_id) == self.split

    def choose(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries to read, in order. Raises SourceError for a repeated id."""
        seen: dict[str, str] = {}
        kept: list[Entry] = []
        for entry in entries:
            if entry.id in seen:
                raise SourceError(
                    f"{entry.where}: dialogue {entry.id!r} appears twice (first in {seen[entry.id]})"
                )
            seen[entry.id] = entry.where
            if self.includes(entry.id):
                kept.append(entry)
        return sample(kept, lambda entry: entry.id, self.limit, self.seed)

    def choose_lines(
        self,
        files: Iterable[Path],
        key: str = "dialogue_id",
        name: Callable[[Path, str], str] = lambda file, value: value,
    ) -> list[Line]:
        """Dialogues of JSONL files (gzip or plain), in file order.

        A line is searched only for the value of ``key`` (`name(file, value)` makes the id of it): 200 of
        12,000 dialogues cost 200 parses. Raises SourceError for an empty line and a missing or repeated id.
        """
        return self.choose(_lines_by_key(files, key, name))


def _lines_by_key(files: Iterable[Path], key: str, name: Callable[[Path, str], str]) -> Iterator[Line]:
    pattern = re.compile(rb'"%s"\s*:\s*"((?:[^"\\]|\\.)*)"' % re.escape(key).encode())
    for file in files:
        for number, text in text_lines(file):
            match = pattern.search(text)
            if match is None:
                raise SourceError(f"{file}:{number}: no {key}")
            yield Line(file, number, name(file, match[1].decode(errors="replace")), text)


Build = Callable[[dict[str, Any], Counter[str]], Dialogue]
"""Makes a dialogue of a record; counts what it adjusts."""


def convert(where: str, record: dict[str, Any], build: Build, counters: Counter[str]) -> Dialogue:
    """``build(record, counters)``. Raises SourceError that begins with ``where`` (file and line).

    What fails is a Malformed, a ValidationError or the KeyError of a missing key. Any other exception of
    `build` is a bug and passes: wrong types are refused beforehand (`records.check`).
    """
    try:
        return build(record, counters)
    except Malformed as error:
        raise SourceError(f"{where}: {error}") from None
    except ValidationError as error:
        raise SourceError(f"{where}: {first_problem(error)}") from None
    except KeyError as error:
        raise SourceError(f"{where}: key {error} is missing") from error


def convert_all(
    entries: Iterable[Line] | Iterable[Record], build: Build, catalog: Catalog, counters: Counter[str]
) -> Corpus:
    """The corpus of all entries, each parsed and converted."""
    dialogues = [convert(entry.where, entry.parse(), build, counters) for entry in entries]
    return make_corpus(catalog, dialogues, counters)


# -- turns ---


def last_user_turn(turns: Sequence[Turn], at: int) -> int | None:
    """The last user turn at or before turn ``at``, None when there is none: the decision point of an action
    after turn ``at``.
    """
    return max((t.index for t in turns if t.speaker == "user" and t.index <= at), default=None)


def compact_turns(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """Turns as a compact record holds them; `turns_of` reads them back."""
    return [{"speaker": "USER" if t.speaker == "user" else "AGENT", "text": t.text} for t in turns]


def turns_of(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a compact record; every speaker but USER is the agent."""
    return tuple(
        Turn(index=i, speaker="user" if t["speaker"] == "USER" else "agent", text=turn_text(t["text"]))
        for i, t in enumerate(record["turns"], start=1)
    )


def turn_text(text: object) -> str:
    """A turn's text, stripped; Malformed when it is empty."""
    if not isinstance(text, str) or not text.strip():
        raise Malformed(f"empty turn {text!r}")
    return text.strip()
