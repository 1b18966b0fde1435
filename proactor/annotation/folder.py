"""The folder that an annotation writes into, and what there it may replace.

Nothing that a person has made there is lost in silence: decisions of reviewers, a ``catalog.json`` of other
tools, and edits of windows that were written while some dialogues had no answer yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proactor.annotation.store import AnnotationError, RecordStore
from proactor.catalogs import propose, write_catalog
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.engine import atomic_file, read_regular, remove
from proactor.sources.reviewed import count_reviews

WINDOWS, CATALOG, REPORT, PARTIAL = "windows.jsonl", "catalog.json", "report.json", "windows.jsonl.partial"


def open_store(out: Path, settings: str, catalog: Catalog, fresh: bool) -> RecordStore:
    """The finished dialogues in ``out``; with ``fresh`` none. Raises AnnotationError where the annotation
    there has ended, was begun with other ``settings``, or what a person made would be lost.
    """
    windows, partial = out / WINDOWS, out / PARTIAL
    written = windows.exists()
    if written and (reviews := count_reviews(windows)):
        raise AnnotationError(
            f"{windows}: holds {reviews} decisions of reviewers, which would be lost; "
            "annotate into another folder (--out)"
        )
    if fresh or not partial.exists():
        if written and not fresh:
            raise AnnotationError(f"{windows}: finished already; --fresh replaces it")
        if not written:
            _check_catalog(out / CATALOG, catalog)
        remove(partial)
        store = RecordStore(partial, settings)
        if written:
            store.note_windows(_digest(windows))
        return store
    store = RecordStore(partial, settings)
    _check_catalog(out / CATALOG, catalog)
    if written and _digest(windows) not in store.windows:
        raise AnnotationError(
            f"{windows}: edited since it was written, and the edits would be lost; move it elsewhere, "
            "then the same command goes on (--fresh replaces it)"
        )
    return store


def write_annotation(
    out: Path, catalog: Catalog, report: Mapping[str, Any], kept: Sequence[Dialogue], store: RecordStore
) -> None:
    """Write the three files, each of them atomically."""
    lines = (json.dumps(d.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")) for d in kept)
    windows = "".join(f"{line}\n" for line in lines).encode()
    write_catalog(catalog, out / CATALOG)
    atomic_file(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    store.note_windows(hashlib.sha256(windows).hexdigest())
    atomic_file(out / WINDOWS, windows)


def _check_catalog(file: Path, catalog: Catalog) -> None:
    """Raise AnnotationError where ``file`` exists and is no ``catalog.json`` of these tools."""
    if not file.exists():
        return
    try:
        same = propose(Catalog.model_validate_json(read_regular(file))).catalog == catalog
    except ValidationError:
        same = False
    if not same:
        raise AnnotationError(
            f"{file}: differs from the tools of this annotation, which would replace it; annotate into "
            f"another folder (--out), or with these tools (--catalog {file})"
        )


def _digest(file: Path) -> str:
    return hashlib.sha256(read_regular(file)).hexdigest()
