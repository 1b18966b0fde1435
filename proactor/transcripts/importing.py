"""Other people's transcripts, read into dialogues in three steps: look, convert, write.

`survey` reads the files and says what it takes them for; nothing is refused yet that a person may want to see
first. `convert` makes dialogues of them through the readers of `proactor.sources`. `write` leaves what
`proactor annotate` and ``data.path`` read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proactor.catalogs import Proposal, propose, read_catalog, write_catalog
from proactor.catalogs.proactor import NAME
from proactor.dialogue import Dialogue, windows
from proactor.dialogue.catalog import Catalog
from proactor.engine import atomic_file, remove
from proactor.files import SourceError
from proactor.sources import action_log, base, load, messages, options_of
from proactor.sources.base import Record
from proactor.sources.transcript import Role, TranscriptOptions, TranscriptReader
from proactor.transcripts.corpora import corpus_of
from proactor.transcripts.entries import FileRead, Tally, files_of, read_file
from proactor.transcripts.guess import guess
from proactor.transcripts.mapping import CORPORA, Columns, ImportMap, mapping_text
from proactor.transcripts.repeats import settled, without_duplicates
from proactor.transcripts.shape import records_of
from proactor.transcripts.tools import tools_of

TRANSCRIPTS = "transcripts.jsonl"
WINDOWS = ("windows.jsonl", "windows.jsonl.gz", "windows.jsonl.partial")
"""What is read before transcripts in the same folder, or goes on from older ones."""
MAPPING = "mapping.yaml"
REPORT = "import.json"


@dataclass(frozen=True, slots=True)
class Heard:
    """A speaker's name: its role (None: unknown), its turns, and the place of the first of them."""

    role: Role | None
    turns: int
    where: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What files hold. ``guessed``: columns that nobody named. ``records`` is empty for a corpus' form, and
    so are ``speakers``.
    """

    paths: tuple[Path, ...]
    files: tuple[FileRead, ...]
    mapping: ImportMap
    guessed: frozenset[str]
    records: tuple[Record, ...]
    speakers: Mapping[str, Heard]
    tally: Tally

    def check_speakers(self) -> None:
        """Raise SourceError where the role of a speaker is not known."""
        unknown = {name: heard for name, heard in self.speakers.items() if heard.role is None}
        if not unknown:
            return
        name, heard = next(iter(unknown.items()))
        others = [repr(n) for n in unknown if n != name]
        also = f" (nor {', '.join(others[:5])}{' …' if len(others) > 5 else ''})" if others else ""
        raise SourceError(
            f"{heard.where}: speaker {name!r} is not known as user or agent{also}: --speakers "
            f'"user=NAME,agent=NAME,drop=NAME" names them; agent=* is everybody else'
        )


@dataclass(frozen=True, slots=True)
class Imported:
    """``proposal``: the tools, with proposed effects; None where no tool is called or offered. ``given``:
    whether they are those of the user's own catalog.
    """

    dialogues: tuple[Dialogue, ...]
    proposal: Proposal | None
    given: bool
    losses: Mapping[str, tuple[str, ...]]
    tally: Tally

    @property
    def counters(self) -> dict[str, int]:
        """What was counted, without zeros."""
        return {name: count for name, count in sorted(self.tally.counters.items()) if count}


def survey(paths: Sequence[Path], mapping: ImportMap) -> Survey:
    """What the files at ``paths`` hold, and the mapping with its gaps filled. Raises SourceError."""
    tally = Tally()
    if mapping.form in CORPORA:
        return Survey(tuple(paths), (), mapping, frozenset(), (), {}, tally)
    read: list[FileRead] = []
    for file in files_of(paths, tally):
        read.append(read_file(file, mapping, tally))
        form = corpus_of(read[-1].names)
        if form is not None and mapping.form == "auto" and mapping.columns == Columns():
            mapping = mapping.model_copy(update={"form": form})
            return Survey(tuple(paths), (), mapping, frozenset({"form"}), (), {}, Tally())
    mapping, guessed = guess(read, mapping)
    records = settled([r for file in read for r in records_of(file, mapping, tally)], mapping, tally)
    reader = TranscriptReader(_options(mapping), Counter())
    return Survey(
        tuple(paths), tuple(read), mapping, guessed, tuple(records), _speakers(records, reader), tally
    )


def convert(
    found: Survey,
    catalog: str | None = None,
    *,
    trust_code: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Imported:
    """The dialogues of a survey, with their tools: those of the file ``catalog``, whose lack of one is an
    error, else a proposal. ``options``: of the reader of a corpus.

    Raises SourceError, naming file and line, unless the mapping drops what is broken.
    """
    tally = Tally(Counter(found.tally.counters), list(found.tally.problems))
    found.check_speakers()
    reader = TranscriptReader(_options(found.mapping), tally.counters)
    tools = propose(read_catalog(catalog, trust_code=trust_code)) if catalog is not None else None
    losses: dict[str, tuple[str, ...]] = {}
    if found.mapping.form in CORPORA:
        placed, own = _corpus(found, reader, tally, losses, options or {})
    else:
        placed = list(_dialogues(found, reader, tally, losses))
        own = tools_of(found.records, [dialogue for _, dialogue in placed], tally)
    if tools is None and len(own):
        tools = propose(own)
    if tools is not None:
        file, drop = Path(catalog or NAME), found.mapping.unknown_tools == "drop"
        placed = [(at, _fitted(at, dialogue, tools, file, drop, tally, losses)) for at, dialogue in placed]
    kept = without_duplicates(placed, found.mapping, tally)
    dialogues = tuple(dialogue for _, dialogue in kept)
    tally.problems += [f"{name}: {why}" for name, why in reader.dropped.items()]
    return Imported(dialogues, tools, catalog is not None, losses, tally)


def write(imported: Imported, mapping: ImportMap, out: Path) -> list[Path]:
    """Write transcripts, mapping, report and tools into a folder; returns the files. Each is atomic. Tools of
    an earlier import are removed where there are none now.
    """
    lines = [d.model_dump_json(exclude_defaults=True) for d in imported.dialogues]
    report = {
        "dialogues": len(imported.dialogues),
        "counters": imported.counters,
        "left_out": imported.tally.problems,
        "losses": imported.losses,
    }
    texts = {
        TRANSCRIPTS: "".join(f"{line}\n" for line in lines),
        MAPPING: mapping_text(mapping, "# proactor import SOURCE --mapping FILE reads in this way again\n"),
        REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        atomic_file(out / name, text.encode())
    written = [out / name for name in texts]
    if imported.proposal is not None:
        write_catalog(imported.proposal.catalog, out / NAME)
        written.append(out / NAME)
    else:
        remove(out / NAME)
    return written


def _options(mapping: ImportMap) -> TranscriptOptions:
    return TranscriptOptions(speakers=mapping.speakers, empty=mapping.empty, one_speaker=mapping.one_speaker)


def _speakers(records: Sequence[Record], reader: TranscriptReader) -> dict[str, Heard]:
    """Everybody who says a turn, by name. Instructions and results are turns to drop."""
    heard: dict[str, Heard] = {}
    for record in records:
        turns = record.value.get("turns", record.value.get("messages"))
        for turn in turns if isinstance(turns, list) else ():
            name = turn.get("speaker", turn.get("role")) if isinstance(turn, dict) else None
            if not isinstance(name, str) or not name.strip():
                continue  # refused, by its place, when it is converted
            name = name.strip()
            role = reader.role(name)
            if role is None and name.casefold() in messages.INSTRUCTIONS | messages.RESULTS:
                role = "drop"
            before = heard.get(name)
            heard[name] = Heard(
                role, before.turns + 1 if before else 1, before.where if before else record.where
            )
    return heard


def _dialogues(
    found: Survey, reader: TranscriptReader, tally: Tally, losses: dict[str, tuple[str, ...]]
) -> Iterator[tuple[str, Dialogue]]:
    """(place, dialogue) of each record that is kept."""
    for record in found.records:
        reader.losses = []
        try:
            value = {**record.value, "id": record.id}
            dialogue = base.convert(record.where, value, reader.dialogue, tally.counters)
            kept = reader.keeps(record.where, dialogue)
        except SourceError as error:
            if found.mapping.broken == "error":
                raise
            tally.leave_out("broken_conversations", str(error))
            continue
        if kept:
            losses |= {dialogue.id: tuple(reader.losses)} if reader.losses else {}
            yield record.where, dialogue


def _corpus(
    found: Survey,
    reader: TranscriptReader,
    tally: Tally,
    losses: dict[str, tuple[str, ...]],
    options: Mapping[str, Any],
) -> tuple[list[tuple[str, Dialogue]], Catalog]:
    """(place, dialogue) of each dialogue of a corpus' form that is kept, and the corpus' tools."""
    form, paths = found.mapping.form, found.paths
    if len(paths) > 1:
        raise SourceError(f"{paths[1]}: of the form {form}, which is read from one file or folder at a time")
    corpus = load(form, paths[0], **options_of(options))
    shown = windows.count(corpus.dialogues)
    tally.counters.update({name: n for name, n in corpus.counters.items() if name not in shown})
    tally.problems += [f"{name}: {why}" for name, why in corpus.dropped.items()]
    losses.update(corpus.losses)
    placed = [(str(paths[0]), d) for d in corpus.dialogues if reader.keeps(str(paths[0]), d)]
    return placed, corpus.catalog


def _fitted(
    where: str,
    dialogue: Dialogue,
    tools: Proposal,
    file: Path,
    drop: bool,
    tally: Tally,
    losses: dict[str, tuple[str, ...]],
) -> Dialogue:
    """A dialogue with actions as the tools have them. Raises SourceError for an unknown tool."""
    lost: list[str] = []

    def build(_: dict[str, Any], counters: Counter[str]) -> Dialogue:
        return action_log.fitted(dialogue, tools.catalog, file, drop, counters, lost)

    made = base.convert(where, {}, build, tally.counters)
    if lost:
        losses[dialogue.id] = (*losses.get(dialogue.id, ()), *lost)
    return made
