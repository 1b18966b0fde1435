"""``proactor import``: transcripts in other people's forms as those that `annotate` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from proactor.commands.catalog import NAME
from proactor.commands.catalog import table as catalog_table
from proactor.commands.common import TrustCode, UsageError, console, parse_pair

if TYPE_CHECKING:
    from proactor.transcripts.importing import Imported, Survey
    from proactor.transcripts.mapping import ImportMap

SHOWN_FILES = 8
SHOWN_NAMES = 20
SHOWN_PROBLEMS = 5
EXAMPLE_TURNS = 3

Sources = Annotated[
    list[Path], typer.Argument(metavar="SOURCE...", help="files or folders", show_default=False)
]
Form = Annotated[
    str, typer.Option(help="auto, chat, turns, rows, conversations, or a corpus: abcd, sgd, star, …")
]
ColumnPairs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OURS=THEIRS,...", help="e.g. conversation=chat_id,speaker=role,text=body; JSON keys by dots"
    ),
]
SpeakerPairs = Annotated[
    list[str] | None,
    typer.Option(metavar="ROLE=NAME,...", help="e.g. agent=bot,user=caller,drop=event; * is everybody else"),
]
MappingFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="a mapping as an import wrote it; the options come on top")
]
SameId = Annotated[str, typer.Option(help="a second conversation of one id: error, join or rename")]
Broken = Annotated[str, typer.Option(help="lines and conversations that cannot be read: error or drop")]
MapOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="another key of the mapping, e.g. duplicates=keep, or an option of a corpus' reader; repeatable",
    ),
]


def import_(
    sources: Sources,
    form: Form = "",
    columns: ColumnPairs = None,
    speakers: SpeakerPairs = None,
    mapping: MappingFile = None,
    encoding: Annotated[str, typer.Option(help="e.g. shift_jis; default: found, line by line")] = "",
    delimiter: Annotated[str, typer.Option(help="of a table; default: as its header shows")] = "",
    same_id: SameId = "",
    broken: Broken = "",
    option: MapOptions = None,
    catalog: Annotated[
        str | None, typer.Option(help="your tools, in any format that `proactor catalog` reads")
    ] = None,
    trust_code: TrustCode = False,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("imported"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be read, write nothing")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace an import in OUT")] = False,
) -> None:
    """Read transcripts of any form: chat messages, tables, JSON, or a corpus' own.

    Writes transcripts.jsonl, mapping.yaml, import.json and, where tools are called, catalog.json into OUT.
    """
    from proactor.sole_writer import sole_writer
    from proactor.transcripts.importing import convert, survey, write

    for source in sources:
        if not source.exists():
            raise UsageError(f"SOURCE {source}: no such file or folder")
    if not dry_run:
        _check_target(out, force)
    options = dict(parse_pair(text) for text in option or [])
    given = {"form": form, "encoding": encoding, "delimiter": delimiter, "same_id": same_id, "broken": broken}
    settings, others = _mapping(mapping, given, columns or [], speakers or [], options)
    found = survey(sources, settings)
    if others and found.files:
        raise UsageError(f"--option {next(iter(others))}: no key of the mapping")
    _print_survey(found)
    imported = convert(found, catalog, trust_code=trust_code, options=others)
    _print_imported(imported, found.mapping, dry_run)
    if not imported.dialogues:
        raise UsageError(_nothing_left(imported))
    if dry_run:
        console.print(f"Nothing was written. Without --dry-run: {out}", markup=False, soft_wrap=True)
        return
    with sole_writer(out):
        _check_target(out, force)  # another process may have written it meanwhile
        stale = imported.proposal is None and (out / NAME).exists()
        written = write(imported, found.mapping, out)
    removed = f"; {NAME} of an earlier import is removed" if stale else ""
    names = ", ".join(file.name for file in written)
    console.print(f"{out}: {names}{removed}", markup=False, soft_wrap=True)
    console.print(_next_step(imported, out), markup=False, soft_wrap=True)


def _check_target(out: Path, force: bool) -> None:
    """Raise UsageError where an import, perhaps edited, would be replaced, or windows would be read instead
    of it.
    """
    from proactor.transcripts.importing import MAPPING, TRANSCRIPTS, WINDOWS

    if windows := next((out / name for name in WINDOWS if (out / name).exists()), None):
        raise UsageError(
            f"{windows}: windows of `proactor annotate`, which would be read instead of the transcripts; "
            "import into another folder (--out), or move them away"
        )
    for name in (TRANSCRIPTS, MAPPING, NAME):
        if (out / name).exists() and not force:
            raise UsageError(
                f"{out / name}: exists already, perhaps with edits of yours; --force replaces it"
            )


def _mapping(
    file: Path | None,
    given: dict[str, str],
    columns: list[str],
    speakers: list[str],
    options: dict[str, Any],
) -> tuple[ImportMap, dict[str, Any]]:
    """The mapping of a file with the command's options on top, and options that are a corpus reader's."""
    from proactor.sources.transcript import Speakers
    from proactor.transcripts.mapping import Columns, ImportMap, pairs_of, read_mapping

    changes: dict[str, Any] = {key: value for key, value in given.items() if value}
    if columns:
        changes["columns"] = dict(p for t in columns for p in pairs_of(t, "--columns", Columns.model_fields))
    if speakers:
        changes["speakers"] = {}
        for role, name in (p for t in speakers for p in pairs_of(t, "--speakers", Speakers.model_fields)):
            changes["speakers"].setdefault(role, []).append(name)
    own = {key: value for key, value in options.items() if key in ImportMap.model_fields}
    return read_mapping(file, own | changes), {k: v for k, v in options.items() if k not in own}


def _print_survey(found: Survey) -> None:
    """The files, their columns and speakers, and example turns."""
    from proactor.transcripts.unread import unread

    for read in found.files[:SHOWN_FILES]:
        what = {"table": "rows", "lines": "lines", "json": "objects"}[read.kind]
        console.print(
            f"{read.file}: {len(read.entries)} {what}, {read.encoding}", markup=False, soft_wrap=True
        )
    if len(found.files) > SHOWN_FILES:
        console.print(f"and {len(found.files) - SHOWN_FILES} more files")
    guessed = " (guessed)" if "form" in found.guessed else ""
    console.print(f"form: {found.mapping.form}{guessed}", markup=False)
    columns = found.mapping.columns.model_dump(exclude_none=True)
    if columns:
        shown = Table("ours", "theirs", "")
        for ours, theirs in columns.items():
            shown.add_row(
                ours, Text(theirs), "guessed: --columns changes it" if ours in found.guessed else ""
            )
        console.print(shown)
    if names := unread(found.files, found.mapping):
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        console.print(f"not read: {', '.join(names[:SHOWN_NAMES])}{more}", markup=False, soft_wrap=True)
    if found.speakers:
        shown = Table("speaker", "role", "turns")
        for name, heard in sorted(found.speakers.items(), key=lambda item: -item[1].turns):
            role = Text(heard.role or "? (--speakers)", style="" if heard.role else "red")
            shown.add_row(Text(name), role, str(heard.turns))
        console.print(shown)


def _print_imported(imported: Imported, mapping: ImportMap, dry_run: bool) -> None:
    """An example, how much there is, what was counted, and the tools; in a dry run the mapping too."""
    from proactor.transcripts.mapping import mapping_text

    for dialogue in imported.dialogues[:1]:
        console.print(f"example, {dialogue.id}:", markup=False)
        for turn in dialogue.turns[:EXAMPLE_TURNS]:
            console.print(f"  {turn.speaker}: {turn.text:.200}", markup=False, soft_wrap=True)
    turns = sum(len(dialogue.turns) for dialogue in imported.dialogues)
    actions = sum(len(dialogue.references) for dialogue in imported.dialogues)
    console.print(f"{len(imported.dialogues)} conversations, {turns} turns, {actions} actions")
    if counters := imported.counters:
        shown = Table("counted", "")
        for name, count in counters.items():
            shown.add_row(name.replace("_", " "), str(count))
        console.print(shown)
    problems = imported.tally.problems
    for line in problems[:SHOWN_PROBLEMS]:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"and {len(problems) - SHOWN_PROBLEMS} more, all in import.json")
    if imported.proposal is not None and not imported.given:
        console.print(catalog_table(imported.proposal))
    if dry_run:
        console.print("the mapping, to be saved, edited and passed with --mapping:")
        console.print(mapping_text(mapping), markup=False, soft_wrap=True, end="")


def _nothing_left(imported: Imported) -> str:
    """Why an import is empty."""
    alone = {"no_user_turns": "user", "no_agent_turns": "agent"}
    for counter, speaker in alone.items():
        if imported.counters.get(counter):
            return (
                f"no conversation is left: none has {speaker} turns; --speakers {speaker}=NAME names one, "
                "--option one_speaker=keep keeps them so"
            )
    return "no conversation is left; the counters above say why"


def _next_step(imported: Imported, out: Path) -> str:
    """What to do with an import."""
    if any(reference.ready for dialogue in imported.dialogues for reference in dialogue.references):
        return f"It has windows. Then: proactor train CONFIG, with data: {{source: jsonl, path: {out}}}"
    if imported.proposal is None:
        return f"Then: proactor annotate {out} --catalog YOUR_TOOLS --oracle engine --model MODEL"
    logged = any(dialogue.references for dialogue in imported.dialogues)
    oracle = "" if logged else " --oracle engine --model MODEL"
    return f"Read {out / NAME}. Then: proactor annotate {out}{oracle}"
