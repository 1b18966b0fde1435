"""Guesses what a mapping leaves open: the form of the files, and which of their columns is which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proactor.files import SourceError
from proactor.sources import messages
from proactor.sources.table import COLUMNS, find_name, plain_name
from proactor.transcripts.entries import FileRead, turns_key, value_at
from proactor.transcripts.mapping import Columns, Form, ImportMap

_NEEDED = {"rows": ("conversation", "speaker", "text"), "conversations": ("turns", "speaker", "text")}
_OF_CONVERSATIONS = ("conversation", "domain")
"""Columns that stand in a conversation rather than in its turns."""


def guess(files: Sequence[FileRead], mapping: ImportMap) -> tuple[ImportMap, frozenset[str]]:
    """``mapping`` with its form and columns, and the names of those that were guessed.

    Raises SourceError where a column that is needed is not found, is not in a file, or nothing fits.
    """
    filled = [read for read in files if read.entries]
    if not filled:
        raise SourceError(f"{files[0].file}: no conversations in it")
    guessed = set()
    if mapping.form == "auto":
        mapping = mapping.model_copy(update={"form": _form(filled, mapping.columns)})
        guessed.add("form")
    if mapping.form in ("chat", "turns"):
        named = mapping.columns.model_dump(exclude_none=True).keys() - {*_OF_CONVERSATIONS, "conversations"}
        if named:
            raise SourceError(
                f"columns: {min(named)}: not read in the form {mapping.form}, which has names of its own; "
                "--form conversations goes by columns"
            )
    columns = _columns(filled[0], mapping)
    mapping = mapping.model_copy(update={"columns": columns[0]})
    for read in filled:
        _check(read, mapping)
    return mapping, frozenset(guessed | columns[1])


def _form(files: Sequence[FileRead], columns: Columns) -> Form:
    forms = {read.file: _form_of(read, columns) for read in files}
    kinds = set(forms.values())
    if len(kinds) > 1:
        told = ", ".join(f"{file} is of {form}" for file, form in forms.items())
        raise SourceError(f"files of several forms: {told}; import them one after another")
    return kinds.pop()


def _form_of(read: FileRead, columns: Columns) -> Form:
    first = read.entries[0].value
    if read.kind == "table":
        return "rows"
    if columns.turns is None and messages.is_chat(first):
        return "chat"
    if columns.turns is None and "id" in first and _is_ours(first.get("turns")):
        return "turns"
    if columns.turns is not None or turns_key(first) is not None:
        return "conversations"
    return "rows"


def _is_ours(turns: object) -> bool:
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return False
    first = turns[0]
    return ("speaker" in first or "role" in first) and ("text" in first or "content" in first)


def _columns(read: FileRead, mapping: ImportMap) -> tuple[Columns, frozenset[str]]:
    """The columns, and which of them are guessed, from the first object of a file."""
    first, given = read.entries[0].value, mapping.columns
    found: dict[str, str | None] = {}
    if mapping.form == "conversations" and given.turns is None:
        found["turns"] = turns_key(first)
    turn = _first_turn(first, given.turns or found.get("turns"), mapping.form)
    if given.conversation is None:
        found["conversation"] = find_name(COLUMNS["id"], [n for n in first if not isinstance(first[n], list)])
    if given.domain is None:
        found["domain"] = find_name(("domain",), first)
    if mapping.form in ("rows", "conversations"):
        if given.speaker is None:
            found["speaker"] = find_name(COLUMNS["speaker"], turn)
        if given.text is None:
            found["text"] = find_name(COLUMNS["text"], turn)
        if given.calls is None and given.tool is None and read.kind != "table":
            found["calls"] = "tool_calls" if _any_calls(read, given.turns or found.get("turns")) else None
    kept = {ours: theirs for ours, theirs in found.items() if theirs is not None}
    return given.model_copy(update=kept), frozenset(kept)


def _first_turn(first: dict[str, Any], turns: str | None, form: Form) -> dict[str, Any]:
    if form != "conversations":
        return first
    listed = value_at(first, turns)
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}


def _any_calls(read: FileRead, turns: str | None) -> bool:
    for entry in read.entries:
        listed = value_at(entry.value, turns) if turns else [entry.value]
        if isinstance(listed, list) and any(isinstance(t, dict) and "tool_calls" in t for t in listed):
            return True
    return False


def _check(read: FileRead, mapping: ImportMap) -> None:
    """Raise SourceError where a file lacks a column that is needed, or that a person named."""
    columns, first = mapping.columns, read.entries[0]
    turn = _first_turn(first.value, columns.turns, mapping.form)
    for ours in _NEEDED.get(mapping.form, ()):
        holder = first.value if ours in ("turns", *_OF_CONVERSATIONS) else turn
        if getattr(columns, ours) is None:
            known = f" ({', '.join(COLUMNS[_kind(ours)])})" if _kind(ours) in COLUMNS else ""
            raise SourceError(
                f"{first.where}: no column for the {ours}{known}; found {', '.join(holder) or 'nothing'}; "
                f"--columns {ours}=NAME names it"
            )
    if read.kind != "table":
        return  # an object may lack a key that others have
    for ours, theirs in columns.model_dump(exclude_none=True).items():
        if column(read.names, theirs) is None:
            raise SourceError(
                f"{read.file}:1: no column {theirs!r} for the {ours}; found "
                f"{', '.join(read.names) or 'nothing'}"
            )


def column(names: Sequence[str], wanted: str) -> str | None:
    """The column that a person means by ``wanted``: of that name, else of one that compares equal."""
    return (
        wanted if wanted in names else next((n for n in names if plain_name(n) == plain_name(wanted)), None)
    )


def _kind(ours: str) -> str:
    return "id" if ours == "conversation" else ours
