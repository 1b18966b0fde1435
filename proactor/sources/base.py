"""What all readers share: the corpus they return, splits by hash, and lines that are sampled before they are
parsed.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proactor.dialogue import Dialogue, Turn, windows
from proactor.dialogue.catalog import Catalog, Effect, Parameter, Tool
from proactor.files import SourceError, first_problem, parse_json

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
Options = TypeVar("Options", bound=BaseModel)


class SelectionError(SourceError):
    """A corpus, split, limit, domain or reader's option that does not exist or cannot be."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Dialogues with the catalog of their tools, and counters of what was read, masked, adjusted or
    dropped.
    """

    catalog: Catalog
    dialogues: tuple[Dialogue, ...]
    counters: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dialogues)


def make_corpus(
    catalog: Catalog, dialogues: Iterable[Dialogue], counters: Mapping[str, int] | None = None
) -> Corpus:
    """A corpus whose counters are those of `windows.count` and the reader's own."""
    listed = tuple(dialogues)
    return Corpus(catalog, listed, windows.count(listed) | dict(counters or {}))


ToolRow = tuple[str, Effect, tuple[str, ...]]
"""(description, effect, slots) of a tool in a source whose release has no catalog."""


def catalog_of(
    rows: Mapping[str, ToolRow], *, asks: tuple[Effect, ...], required: Collection[str] = ()
) -> Catalog:
    """A catalog from rows by tool name. ``asks``: effects that need the user's assent; ``required``: slots
    that a call cannot do without.
    """
    return Catalog(
        tools=tuple(
            Tool(
                name=name,
                description=description,
                effect=effect,
                confirm=effect in asks,
                parameters=tuple(Parameter(name=slot, required=slot in required) for slot in slots),
            )
            for name, (description, effect, slots) in rows.items()
        )
    )


def with_dialogues(
    found: Corpus, dialogues: Iterable[Dialogue], counters: Mapping[str, int] | None = None
) -> Corpus:
    """A corpus with some (or other) dialogues of ``found``: counted anew, with what its reader counted and
    ``counters``.
    """
    own = {k: v for k, v in found.counters.items() if k not in windows.count(found.dialogues)}
    return make_corpus(found.catalog, dialogues, own | dict(counters or {}))


class Selection(BaseModel):
    """Which dialogues of a corpus are wanted: of these ``domains`` (empty: all), of at most ``max_turns``
    turns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...] = ()
    max_turns: int | None = Field(default=None, ge=1)

    def apply(self, found: Corpus, limit: int | None, seed: int) -> Corpus:
        """The wanted dialogues of ``found``, at most ``limit`` of them (a sample by ``seed``); the others are
        counted.

        Raises ValueError for a domain that no dialogue has.
        """
        known = {d.domain for d in found.dialogues}
        if missing := set(self.domains) - known:
            raise SelectionError(
                f"keep.domains: no dialogue is of {sorted(missing)[0]!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        counters: Counter[str] = Counter()
        kept = []
        for dialogue in found.dialogues:
            other = bool(self.domains) and dialogue.domain not in self.domains
            long = self.max_turns is not None and len(dialogue.turns) > self.max_turns
            counters["other_domain"] += other
            counters["too_many_turns"] += long and not other
            if not (other or long):
                kept.append(dialogue)
        return make_corpus(found.catalog, sample(kept, lambda d: d.id, limit, seed), counters)


Item = TypeVar("Item")


def sample(items: Sequence[Item], name: Callable[[Item], str], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items, those with the smallest seeded hash of their name, in their order: a sample that
    grows by prefix.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = heapq.nsmallest(limit, range(len(items)), key=lambda i: _hash("sample", seed, name(items[i])))
    return [items[i] for i in sorted(chosen)]


def split_of(dialogue_id: str) -> Split:
    """80/10/10 by a hash of the id: it does not depend on the seed, the machine or the other dialogues."""
    share = _hash("split", dialogue_id) % 10
    return "train" if share < 8 else "dev" if share == 8 else "test"


def select_share(found: Corpus, share: tuple[float, float], limit: int | None, seed: int) -> Corpus:
    """The dialogues whose `share_of` lies in [low, high), at most ``limit`` of them; the others are
    counted.
    """
    kept = [d for d in found.dialogues if share[0] <= share_of(d.id) < share[1]]
    counters = {"other_share": len(found.dialogues) - len(kept)}
    return with_dialogues(found, sample(kept, lambda d: d.id, limit, seed), counters)


def share_of(dialogue_id: str) -> float:
    """A hundredth in [0, 1) by a hash of the id, apart from that of the split."""
    return _hash("share", dialogue_id) % 100 / 100


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def validate_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Validates a reader's options; ValueError names the one that is unknown or wrong."""
    try:
        return kind(**given)
    except ValidationError as error:
        raise SelectionError(f"option {first_problem(error, top=kind.__name__)}") from None


@dataclass(frozen=True, slots=True)
class Line:
    """One dialogue, not parsed yet, and where it stands."""

    file: Path
    number: int
    id: str
    text: bytes

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"

    def parse(self) -> dict[str, Any]:
        record = parse_json(self.text, self.file, self.number)
        if not isinstance(record, dict):
            raise SourceError(f"{self.where}: not an object")
        return record


@dataclass(frozen=True, slots=True)
class Record:
    """One dialogue of a file that holds many in one JSON value (or that is one), and where it stands."""

    where: str
    id: str
    value: dict[str, Any]

    def parse(self) -> dict[str, Any]:
        return self.value


Found = TypeVar("Found", Line, Record)


def choose(found: Iterable[Found], split: Split | None, limit: int | None, seed: int) -> list[Found]:
    """Those of the split, at most `limit` of them (the smallest seeded hashes), in order; an id that repeats
    is an error.
    """
    seen: dict[str, str] = {}
    kept: list[Found] = []
    for one in found:
        if one.id in seen:
            raise SourceError(f"{one.where}: dialogue {one.id!r} appears twice (first in {seen[one.id]})")
        seen[one.id] = one.where
        if split is None or split_of(one.id) == split:
            kept.append(one)
    return sample(kept, lambda one: one.id, limit, seed)


def lines(
    files: Iterable[Path],
    split: Split | None,
    limit: int | None,
    seed: int,
    key: str = "dialogue_id",
    name: Callable[[Path, str], str] | None = None,
) -> list[Line]:
    """Dialogues of JSONL files (gzip or plain) in file order, chosen as `choose` does.

    Only the id (the value of `key`; `name(file, value)` makes the dialogue's id of it) is looked at, so
    reading 200 of 12,000 dialogues parses 200. An empty line, a line without an id and two lines with one id
    are SourceErrors.
    """
    return choose(_all_lines(files, key, name or (lambda _, given: given)), split, limit, seed)


def _all_lines(files: Iterable[Path], key: str, name: Callable[[Path, str], str]) -> Iterator[Line]:
    pattern = re.compile(rb'"%s"\s*:\s*"((?:[^"\\]|\\.)*)"' % re.escape(key).encode())
    for file in files:
        for number, text in text_lines(file):
            found = pattern.search(text)
            if found is None:
                raise SourceError(f"{file}:{number}: no {key}")
            yield Line(file, number, name(file, found[1].decode(errors="replace")), text)


def text_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of a file's lines, gzip or plain; an empty line and a file that breaks off are
    SourceErrors.
    """
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            for number, text in enumerate(stream, start=1):
                if not text.strip():
                    raise SourceError(f"{file}:{number}: empty line")
                yield number, text.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}:{number + 1}: cannot be read ({error})") from None


def convert(
    where: str,
    record: dict[str, Any],
    build: Callable[[dict[str, Any], Counter[str]], Dialogue],
    counters: Counter[str],
) -> Dialogue:
    """`build(record, counters)` with its failures named by `where` (file and line)."""
    try:
        return build(record, counters)
    except ValidationError as error:
        raise SourceError(f"{where}: {first_problem(error)}") from None
    except KeyError as error:
        raise SourceError(f"{where}: key {error} is missing") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise SourceError(f"{where}: malformed dialogue ({error})") from None


def last_user_turn(turns: Sequence[Turn], at: int) -> int | None:
    """The last user turn at or before turn `at`: where the agent that acted then had its last chance to
    decide.
    """
    return max((t.index for t in turns if t.speaker == "user" and t.index <= at), default=None)


def turns_of(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a compact record; an agent is everybody who is not the user."""
    return tuple(
        Turn(index=i, speaker="user" if t["speaker"] == "USER" else "agent", text=turn_text(t["text"]))
        for i, t in enumerate(record["turns"], start=1)
    )


def turn_text(text: object) -> str:
    """A turn's text, stripped; ValueError when it is empty."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"empty turn {text!r}")
    return text.strip()
