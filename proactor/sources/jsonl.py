"""Our own JSONL, and transcripts: JSONL, chat messages, CSV.

A file, or a folder with ``windows.jsonl`` or other JSONL files (gzip or plain), one dialogue per line, or
with CSV files (`sources.table`), and the tools beside them in ``catalog.json``. A line is

- a dialogue as `Dialogue.model_dump(mode="json")` gives it, with references (what `annotate` writes), or
- a transcript: ``{"id": …, "turns": [{"speaker": …, "text": …}, …]}``, with or without a log of actions
  (``references``). Turns stay unchanged, also two of one speaker in a row. Speakers go by common names
  (`USERS`, `AGENTS`). Other keys of a line are ignored and counted (``ignored_keys``), or
- OpenAI's ``{"messages": [...]}`` (`sources.messages`). Without an id, its id is a hash of the line.

A file may also be the log of an agent at work (`sources.agent_log`), whose lines are events.

In transcripts

- ``system`` is the agent only where no other agent speaks, as in corpora of user and system. Beside an
  assistant it gives instructions: its turns are left out and counted as `system_messages`, and so are those
  of a ``developer``; results of a ``tool`` or ``function`` are left out as `tool_messages`;
- values that are no text (numbers) are taken as text;
- an `observed_trigger` on an agent's turn moves to the last user turn before it (`triggers_moved`), since the
  agent decides after user turns. An action before the user spoke is left out (`actions_before_user`);
- an action of a tool that the catalog lacks is an error, or with ``unknown_tools=drop`` left out and counted.

`Corpus.losses` names each action that was left out, `Corpus.places` the line of each dialogue without an id.

A dialogue with one speaker has no agent to decide, or nothing to decide on. It is dropped, named in
`Corpus.dropped` and counted as `no_user_turns` or `no_agent_turns`, unless the option `one_speaker` says
otherwise [INFERRED].
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from proactor.catalogs import propose, read_catalog
from proactor.catalogs.proactor import NAME
from proactor.dialogue import Dialogue, Speaker, Turn
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, find_files, valid_utf8
from proactor.sources import action_log, agent_log, base, messages, table
from proactor.sources.base import Line, Malformed, Record, Subset
from proactor.sources.corpus import Corpus, make_corpus

USERS = frozenset("user customer human client caller member patient guest visitor".split())
AGENTS = frozenset(
    "agent assistant system bot chatbot ai model operator advisor adviser representative rep support "
    "staff".split()
)

_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("(?:[^"\\]|\\.)*")')
_KEYS = {"id", "turns", *Dialogue.model_fields}
_TURN_KEYS = {"speaker", "text", "index", "role", "content"}
SYSTEM = frozenset({"system"})
"""Speakers that are the agent only where no other one is."""


class JsonlOptions(BaseModel):
    """How JSONL is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: str | None = Field(
        default=None,
        description="tools, of any format that `read_catalog` knows; default: catalog.json beside the file",
    )
    trust_code: bool = Field(
        default=False, description="whether a `catalog` that is a Python module may run, to be read"
    )
    user: str | None = Field(
        default=None,
        description="the user's name in transcripts; who is not known as a user is then an agent",
    )
    empty: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a turn without text"
    )
    unknown_tools: Literal["error", "drop"] = Field(
        default="error", description="what becomes of an action whose tool is not in the catalog"
    )
    one_speaker: Literal["drop", "keep", "error"] = Field(
        default="drop", description="what becomes of a dialogue without user turns, or without agent turns"
    )


OPTIONS = JsonlOptions


def load(path: Path, subset: Subset, options: JsonlOptions) -> Corpus:
    """Reads a folder or file; see `sources.load`. The limit counts lines, also those dropped afterwards."""
    patterns = (
        "windows.jsonl",
        "windows.jsonl.gz",
        "*.jsonl.gz",
        "*.jsonl",
        *(f"*{s}" for s in table.SUFFIXES),
    )
    files = find_files(path, *patterns)
    counters: Counter[str] = Counter()
    reader = _Reader(path if path.is_dir() else path.parent, options, counters)
    entries: list[Line] | list[Record]
    if table.is_table(files[0]):
        entries = subset.choose(record for file in files for record in table.records(file))
    elif agent_log.is_agent_log(files[0]):
        entries = subset.choose(record for file in files for record in agent_log.records(file, counters))
    else:
        entries = subset.choose(_lines(files))
    dialogues = []
    losses: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
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


def _lines(files: Iterable[Path]) -> Iterator[Line]:
    """Lines with their ids. A line is parsed for its id only where that is not its first key: turns may have
    ids of their own.
    """
    hashed: Counter[str] = Counter()
    for file in files:
        for number, text in base.text_lines(file):
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
                    identity = hashlib.sha256(text).hexdigest()[:12]
                    hashed[identity] += 1
                    if hashed[identity] > 1:  # the same conversation once more
                        identity = f"{identity}-{hashed[identity]}"
            if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
                raise SourceError(f"{line.where}: no id")
            yield Line(file, number, valid_utf8(str(identity)), text)


class _Reader:
    """Builds dialogues and checks them against the catalog."""

    def __init__(self, folder: Path, options: JsonlOptions, counters: Counter[str]) -> None:
        self.options = options
        self.counters = counters
        self.dropped: dict[str, str] = {}
        self.losses: list[str] = []
        """What was left out of the dialogue that is read."""
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
        if messages.is_chat(record):
            record = messages.as_transcript(record, counters, self.losses)
        record = action_log.values_as_text(record, counters)
        listed = record["turns"]
        if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
            raise Malformed("`turns` is not a list of objects")
        complete = bool(listed) and all("index" in turn for turn in listed)
        dialogue = Dialogue.model_validate(record) if complete else self._transcript(record, listed)
        return self._fitted(self._without_empty(dialogue))

    def _transcript(self, record: dict[str, Any], listed: list[dict[str, Any]]) -> Dialogue:
        turns: list[Turn] = []
        places = [0]  # the number of turns kept up to each turn
        instructed = self._has_instructions(listed)
        for index, turn in enumerate(listed, start=1):
            text = turn.get("text", turn.get("content"))
            if not isinstance(text, str):
                raise Malformed(f"turn {index}: no text (found {text!r})")
            name = _speaker_name(turn, index)
            if (left_out := self._left_out(name.casefold(), text, instructed)) is not None:
                self.counters[left_out] += 1
            else:
                speaker = self._speaker(name, index)
                turns.append(Turn(index=len(turns) + 1, speaker=speaker, text=valid_utf8(text.strip())))
                self.counters["broken_characters"] += turns[-1].text != text.strip()
            places.append(len(turns))
            self.counters["ignored_keys"] += len(turn.keys() - _TURN_KEYS)
        self.counters["ignored_keys"] += len(record.keys() - _KEYS)
        known = {key: value for key, value in record.items() if key in _KEYS}
        for kind in action_log.KINDS:
            if isinstance(known.get(kind), list):
                known[kind] = action_log.placed(known[kind], turns, places, self.counters, self.losses)
        return Dialogue.model_validate({"source": "jsonl", **known, "turns": tuple(turns)})

    def _left_out(self, name: str, text: str, instructed: bool) -> str | None:
        """The counter of a turn that is none: an instruction, a tool's result, an empty one to drop."""
        if name in messages.RESULTS:
            return "tool_messages"
        if name in messages.INSTRUCTIONS - SYSTEM or (instructed and name in SYSTEM):
            return "system_messages"
        return "empty_turns" if self.options.empty == "drop" and _is_blank(text) else None

    def _has_instructions(self, listed: list[dict[str, Any]]) -> bool:
        """Whether `system` is not the agent: another one speaks."""
        names = {_speaker_name(turn, index).casefold() for index, turn in enumerate(listed, start=1)}
        names -= messages.RESULTS | (messages.INSTRUCTIONS - SYSTEM)
        return bool(names & SYSTEM) and any(
            name not in SYSTEM and self._speaker(name, 1) == "agent" for name in names if self._known(name)
        )

    def _known(self, name: str) -> bool:
        return name in USERS or name in AGENTS or self.options.user is not None

    def _speaker(self, name: str, index: int) -> Speaker:
        plain, user = name.casefold(), self.options.user
        if plain in USERS or (user is not None and plain == user.strip().casefold()):
            return "user"
        if plain not in AGENTS and user is None:
            raise Malformed(
                f"turn {index}: speaker {name!r} is not known as user ({', '.join(sorted(USERS))}) or agent "
                f"({', '.join(sorted(AGENTS))}); the option `user` names the user"
            )
        return "agent"

    def _without_empty(self, dialogue: Dialogue) -> Dialogue:
        kept = [turn for turn in dialogue.turns if not _is_blank(turn.text)]
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
        drop = self.options.unknown_tools == "drop"
        return action_log.fitted(dialogue, self.catalog, self.file, drop, self.counters, self.losses)

    def keeps(self, where: str, dialogue: Dialogue) -> bool:
        """Whether both speakers occur or ``one_speaker`` lets one pass. May raise SourceError."""
        speakers = {turn.speaker for turn in dialogue.turns}
        missing = next((name for name in ("user", "agent") if name not in speakers), None)
        if missing is None:
            return True
        if self.options.one_speaker == "error":
            raise SourceError(f"{where}: dialogue {dialogue.id!r} has no {missing} turns")
        self.counters[f"no_{missing}_turns"] += 1
        if self.options.one_speaker == "keep":
            return True
        self.dropped[dialogue.id] = f"no {missing} turns"
        return False


def _is_blank(text: str) -> bool:
    return not any(c.isprintable() and not c.isspace() for c in text)


def _speaker_name(turn: dict[str, Any], index: int) -> str:
    """The name of a turn's speaker. Raises ValueError where there is none."""
    name = turn.get("speaker", turn.get("role"))
    if not isinstance(name, str) or not name.strip():
        raise Malformed(f"turn {index}: no speaker (found {name!r})")
    return name.strip()
