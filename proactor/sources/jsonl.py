"""Our own JSONL, and plain transcripts.

A file, or a folder with ``windows.jsonl`` or other JSONL files (gzip or plain), one dialogue per line, and
the tools beside them in ``catalog.json``. A line is either

- a dialogue as `Dialogue.model_dump(mode="json")` gives it, with references (what `annotate` writes), or
- a transcript: ``{"id": …, "turns": [{"speaker": …, "text": …}, …]}``, without references. Turns stay
  unchanged, also two of one speaker in a row. Speakers go by common names (`USERS`, `AGENTS`). Other keys of
  a line are ignored and counted (``ignored_keys``).

A dialogue with one speaker has no agent to decide, or nothing to decide on. It is dropped and counted as
`no_user_turns` or `no_agent_turns`, unless the option `one_speaker` says otherwise [INFERRED].
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from proactor.catalogs import propose, read_catalog
from proactor.catalogs.proactor import NAME
from proactor.dialogue import Dialogue, Speaker, Turn
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, find_files, valid_utf8
from proactor.sources import base
from proactor.sources.base import Line, Malformed, Subset
from proactor.sources.corpus import Corpus, make_corpus

USERS = frozenset("user customer human client caller member patient guest visitor".split())
AGENTS = frozenset(
    "agent assistant system bot chatbot ai model operator advisor adviser representative rep support "
    "staff".split()
)

_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("(?:[^"\\]|\\.)*")')
_KEYS = {"id", "turns", *Dialogue.model_fields}
_MARKS = ("references", "withdrawn")


class JsonlOptions(BaseModel):
    """How JSONL is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: str | None = Field(
        default=None,
        description="tools, of any format that `read_catalog` knows; default: catalog.json beside the file",
    )
    user: str | None = Field(
        default=None,
        description="the user's name in transcripts; who is not known as a user is then an agent",
    )
    empty: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a turn without text"
    )
    one_speaker: Literal["drop", "keep", "error"] = Field(
        default="drop", description="what becomes of a dialogue without user turns, or without agent turns"
    )


OPTIONS = JsonlOptions


def load(path: Path, subset: Subset, options: JsonlOptions) -> Corpus:
    """Reads a folder or file; see `sources.load`. The limit counts lines, also those dropped afterwards."""
    files = find_files(path, "windows.jsonl", "windows.jsonl.gz", "*.jsonl.gz", "*.jsonl")
    counters: Counter[str] = Counter()
    reader = _Reader(path if path.is_dir() else path.parent, options, counters)
    dialogues = []
    for line in subset.choose(_lines(files)):
        dialogue = base.convert(line.where, {**line.parse(), "id": line.id}, reader.dialogue, counters)
        if reader.keeps(line.where, dialogue):
            dialogues.append(dialogue)
    return make_corpus(reader.catalog or Catalog(tools=()), dialogues, counters)


def _lines(files: Iterable[Path]) -> Iterator[Line]:
    """Lines with their ids. A line is parsed for its id only where that is not its first key: turns may have
    ids of their own.
    """
    for file in files:
        for number, text in base.text_lines(file):
            line = Line(file, number, "", text)
            if match := _ID.match(text):
                try:
                    identity = json.loads(match[1].decode("utf-8", "replace"), strict=False)
                except json.JSONDecodeError as error:
                    raise SourceError(f"{line.where}: not JSON ({error.msg})") from None
            else:
                identity = line.parse().get("id")
            if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
                raise SourceError(f"{line.where}: no id")
            yield Line(file, number, valid_utf8(str(identity)), text)


class _Reader:
    """Builds dialogues and checks them against the catalog."""

    def __init__(self, folder: Path, options: JsonlOptions, counters: Counter[str]) -> None:
        self.options = options
        self.counters = counters
        self.file = Path(options.catalog) if options.catalog else folder / NAME
        self.catalog: Catalog | None = None
        if options.catalog or self.file.is_file():
            proposal = propose(read_catalog(options.catalog or self.file))
            self.catalog = proposal.catalog
            counters["effects_proposed"] += len(proposal.open_suggestions)
        else:
            counters["no_catalog"] += 1

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of either form, checked against the catalog."""
        listed = record["turns"]
        if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
            raise Malformed("`turns` is not a list of objects")
        complete = bool(listed) and all("index" in turn for turn in listed)
        dialogue = Dialogue.model_validate(record) if complete else self._transcript(record, listed)
        dialogue = self._without_empty(dialogue)
        self._check_tools(dialogue)
        return dialogue

    def _transcript(self, record: dict[str, Any], listed: list[dict[str, Any]]) -> Dialogue:
        turns = []
        for index, turn in enumerate(listed, start=1):
            text = turn.get("text")
            if not isinstance(text, str):
                raise Malformed(f"turn {index}: no text (found {text!r})")
            turns.append(Turn(index=index, speaker=self._speaker(turn, index), text=valid_utf8(text.strip())))
            self.counters["broken_characters"] += turns[-1].text != text.strip()
            self.counters["ignored_keys"] += len(turn.keys() - {"speaker", "text", "index"})
        self.counters["ignored_keys"] += len(record.keys() - _KEYS)
        known = {key: value for key, value in record.items() if key in _KEYS}
        return Dialogue.model_validate({"source": "jsonl", **known, "turns": tuple(turns)})

    def _speaker(self, turn: dict[str, Any], index: int) -> Speaker:
        name = turn.get("speaker")
        if not isinstance(name, str) or not name.strip():
            raise Malformed(f"turn {index}: no speaker (found {name!r})")
        plain = name.strip().casefold()
        user = self.options.user
        if plain in USERS or (user is not None and plain == user.strip().casefold()):
            return "user"
        if plain not in AGENTS and user is None:
            raise Malformed(
                f"turn {index}: speaker {name!r} is not known as user ({', '.join(sorted(USERS))}) or agent "
                f"({', '.join(sorted(AGENTS))}); the option `user` names the user"
            )
        return "agent"

    def _without_empty(self, dialogue: Dialogue) -> Dialogue:
        kept = [
            turn for turn in dialogue.turns if any(c.isprintable() and not c.isspace() for c in turn.text)
        ]
        if len(kept) == len(dialogue.turns):
            return dialogue
        first = next(turn.index for turn in dialogue.turns if turn not in kept)
        if self.options.empty == "error":
            raise Malformed(f"turn {first} is empty; the option empty=drop leaves such turns out")
        if dialogue.references or dialogue.withdrawn:
            raise Malformed(f"turn {first} is empty and cannot be dropped: the windows count on it")
        self.counters["empty_turns"] += len(dialogue.turns) - len(kept)
        turns = tuple(turn.model_copy(update={"index": i}) for i, turn in enumerate(kept, start=1))
        return Dialogue.model_validate({**dict(dialogue), "turns": turns})

    def _check_tools(self, dialogue: Dialogue) -> None:
        marks = (*dialogue.references, *dialogue.withdrawn)
        named = dict.fromkeys((*(mark.name for mark in marks), *dialogue.tools))
        if self.catalog is None:
            if named:
                raise Malformed(f"names tools ({next(iter(named))!r}), but there is no {self.file}")
            return
        for name in named:
            if name not in self.catalog:
                raise Malformed(f"tool {name!r} is not in {self.file}")
        for mark in marks:
            known = {parameter.name for parameter in self.catalog[mark.name].parameters}
            self.counters["unknown_parameters"] += len(mark.params.keys() - known)

    def keeps(self, where: str, dialogue: Dialogue) -> bool:
        """Whether both speakers occur or ``one_speaker`` lets one pass. May raise SourceError."""
        speakers = {turn.speaker for turn in dialogue.turns}
        missing = next((name for name in ("user", "agent") if name not in speakers), None)
        if missing is None:
            return True
        if self.options.one_speaker == "error":
            raise SourceError(f"{where}: dialogue {dialogue.id!r} has no {missing} turns")
        self.counters[f"no_{missing}_turns"] += 1
        return self.options.one_speaker == "keep"
