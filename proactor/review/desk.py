"""What a reviewer has on the desk: the file, its tools, another annotation beside it, and all as the page
shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proactor.catalogs import propose, read_catalog
from proactor.catalogs.proactor import NAME
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.dialogue import fold
from proactor.review.agreement import DECIDED, standing
from proactor.review.doubts import AnnotationNotes, dialogue_doubts, overlap, window_doubts
from proactor.review.edit import Edit, apply, now
from proactor.review.windows_file import Entry, ReviewError, WindowsFile
from proactor.sources.reviewed import REMOVED, REVIEW, review_of, windows_in


class Desk:
    """The windows in ``windows``, reviewed by the person called ``reviewer``.

    ``beside``: another file of windows of the same dialogues, to be shown next to them. Raises SourceError
    for files that cannot be read, ReviewError for other turns in ``beside``.
    """

    def __init__(self, windows: Path, reviewer: str, beside: Path | None = None) -> None:
        self.reviewer = reviewer
        self.file = WindowsFile(windows)
        self.notes = AnnotationNotes.beside(self.file.path)
        self.beside = WindowsFile(beside).entries() if beside is not None else {}
        for name, entry in self.beside.items():
            if name in self.file.entries() and self.file.entry(name).dialogue.turns != entry.dialogue.turns:
                raise ReviewError(f"{beside}: dialogue {name!r} has other turns than in {self.file.path}")
        self.catalog = _tools(self.file)
        self._rows: dict[bytes, dict[str, Any]] = {}

    def overview(self) -> dict[str, Any]:
        """Who reviews what, with which tools, and a row for each dialogue in order."""
        return {
            "file": self.file.path.name,
            "folder": self.file.path.parent.name,
            "reviewer": self.reviewer,
            "compared": bool(self.beside),
            "tools": [tool.model_dump() for tool in self.catalog.tools],
            "dialogues": [self.row(entry) for entry in self.file.entries().values()],
        }

    def progress(self) -> str:
        """How far the review has come, in words."""
        rows = [self.row(entry) for entry in self.file.entries().values()]
        return f"{sum(row['reviewed'] for row in rows)} of {len(rows)} dialogues reviewed"

    def row(self, entry: Entry) -> dict[str, Any]:
        """A dialogue in the list: how many windows it has, how many are decided, what is doubtful."""
        if entry.line not in self._rows:
            self._rows[entry.line] = self._row(entry)
        return self._rows[entry.line]

    def _row(self, entry: Entry) -> dict[str, Any]:
        dialogue = entry.dialogue
        other = self.beside.get(dialogue.id)
        windows = _windows(entry)
        statuses = [_status(window) for window, _ in windows]
        decided = sum(status in DECIDED for status in statuses)
        doubts = window_doubts(dialogue, self.catalog, self.notes)
        open_ids = [w["id"] for (w, _), status in zip(windows, statuses) if status not in DECIDED]
        return {
            "id": dialogue.id,
            "domain": dialogue.domain,
            "version": entry.version,
            "windows": len(windows),
            "decided": decided,
            "rejected": statuses.count("rejected"),
            "reviewed": decided == len(windows) and (bool(windows) or entry.record.get(REVIEW) is not None),
            "doubts": sum(len(doubts.get(name, ())) for name in open_ids)
            + len(dialogue_doubts(dialogue, self.notes)),
            "overlap": None
            if other is None
            else overlap(standing(entry), standing(other), dialogue.decision_turns),
        }

    def view(self, name: str) -> dict[str, Any]:
        """One dialogue with all that the page shows. Raises Conflict for one that is not there."""
        return self._view(self.file.entry(name))

    def _view(self, entry: Entry) -> dict[str, Any]:
        dialogue = entry.dialogue
        doubts = window_doubts(dialogue, self.catalog, self.notes)
        known = {r.id: r for r in (*dialogue.references, *dialogue.withdrawn)}
        other = self.beside.get(dialogue.id)
        return {
            **self.row(entry),
            "turns": [turn.model_dump() for turn in dialogue.turns],
            "offered": list(dialogue.tools or self.catalog.names),
            "doubts": dialogue_doubts(dialogue, self.notes),
            "complete": entry.record.get(REVIEW) is not None,
            "removed": [w.get("id") for w in windows_in(entry.record, REMOVED)],
            "windows": [_shown(w, kind, known[w["id"]], doubts) for w, kind in _windows(entry)],
            "beside": [] if other is None else [_outline(r) for r in standing(other)],
            "row": self.row(entry),
        }

    def save(self, edit: Edit) -> dict[str, Any]:
        """Save an edit; the dialogue as it is then. Raises as `WindowsFile.change` and `edit.apply`."""
        at = now()
        entry = self.file.change(
            edit.id, edit.version, lambda entry: apply(entry, edit, self.catalog, self.reviewer, at)
        )
        return self._view(entry)

    def undo(self, name: str, version: str, to: str) -> dict[str, Any]:
        """Take an edit back; the dialogue as it is then. Raises as `WindowsFile.undo`."""
        return self._view(self.file.undo(name, version, to))

    def search(self, words: str) -> list[str]:
        """Ids of the dialogues that hold all words: in a turn, a tool, a value or the id."""
        wanted = fold(words).split()
        return [
            name
            for name, entry in self.file.entries().items()
            if all(w in _text(entry.dialogue) for w in wanted)
        ]


def _tools(file: WindowsFile) -> Catalog:
    """The tools of ``catalog.json`` beside the windows, else those that the windows name."""
    beside = file.path.parent / NAME
    if beside.is_file():
        return propose(read_catalog(str(beside))).catalog
    found: dict[str, dict[str, None]] = {}
    for entry in file.entries().values():
        for reference in (*entry.dialogue.references, *entry.dialogue.withdrawn):
            found.setdefault(reference.name, {}).update(dict.fromkeys(reference.params))
        for name in entry.dialogue.tools:
            found.setdefault(name, {})
    return Catalog(
        tools=tuple(
            Tool(name=name, parameters=tuple(Parameter(name=p, required=False) for p in parameters))
            for name, parameters in sorted(found.items())
        )
    )


def _windows(entry: Entry) -> list[tuple[Mapping[str, Any], str]]:
    """(window, its key in the record) for each window of a dialogue."""
    return [(w, kind) for kind in ("references", "withdrawn") for w in windows_in(entry.record, kind)]


def _status(window: Mapping[str, Any]) -> str:
    review = review_of(window)
    return "" if review is None else review.status


def _shown(
    window: Mapping[str, Any], kind: str, reference: Reference, doubts: Mapping[str, list[str]]
) -> dict[str, Any]:
    status, review = _status(window), review_of(window)
    return {
        **reference.model_dump(mode="json"),
        "withdrawn": kind == "withdrawn",
        "status": status if status in DECIDED else "",
        "review": None if review is None else review.model_dump(),
        "doubts": doubts.get(reference.id, []),
    }


def _outline(reference: Reference) -> dict[str, Any]:
    return reference.model_dump(mode="json", include={"id", "name", "params", "coverage", "ready"})


def _text(dialogue: Dialogue) -> str:
    marks = (*dialogue.references, *dialogue.withdrawn)
    named = [part for mark in marks for part in (mark.name, *mark.params.values())]
    return fold(" ".join([dialogue.id, dialogue.domain, *named, *(turn.text for turn in dialogue.turns)]))
