"""What a reviewer makes of a dialogue's windows: the page sends all of them, the record takes what differs.

Keys of a window that the page does not show stay as they are, and so does the order of keys and windows. Each
window that differs, is new or was taken out carries who did that and when (`sources.reviewed`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Dialogue, Interval, Reference
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.windows import mentions
from proactor.review.windows_file import KINDS, Entry, ReviewError
from proactor.sources.messages import params_as_text
from proactor.sources.reviewed import REMOVED, REVIEW, Review, Verdict, review_of, windows_in

Status = Literal["", "accepted", "rejected"]
UNSURE, WITHDRAWN = "unsure", "withdrawn"
"""The ``null_reason`` of a window that a reviewer could not place, and of an action that was taken back."""


class EditedWindow(BaseModel):
    """A window as the page has it; one with an ``id`` that is not there yet is new. ``status``: what was
    decided, "" for nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    params: dict[str, str] = Field(default_factory=dict)
    coverage: Interval | None = None
    ready: Interval | None = None
    withdrawn: bool = False
    status: Status = ""


class Edit(BaseModel):
    """All windows of a dialogue as they are to be; those that are not among them are taken out.

    ``complete``: whether the reviewer says that no window is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: str
    windows: tuple[EditedWindow, ...]
    complete: bool = False


def now() -> str:
    """The time as reviews keep it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def apply(entry: Entry, edit: Edit, catalog: Catalog, by: str, at: str) -> dict[str, Any]:
    """The record of ``entry`` with the windows of ``edit``. Raises ReviewError for a window named twice, a
    new one with the id of one that was taken out, and a tool that ``catalog`` does not have.
    """
    record = copy.deepcopy(dict(entry.record))
    _check_ids(record, edit)
    stamp = _Stamp(by, at)
    old = {window["id"]: (kind, window) for kind, window in _windows(record)}
    for wanted in edit.windows:
        kind, window = old.get(wanted.id, ("", {"id": wanted.id}))
        before = copy.deepcopy(window)
        if window.get("name") != wanted.name and wanted.name not in catalog:
            raise ReviewError(f"tool {wanted.name!r} is not in catalog.json")
        if not kind:
            window |= Reference(id=wanted.id, name=wanted.name).model_dump(mode="json") | {"params": None}
        _set_values(window, wanted, entry.dialogue)
        _set_times(window, wanted)
        stamp.put(window, before, wanted.status)
        target = KINDS[wanted.withdrawn]
        if kind != target:
            if kind:
                record[kind] = [w for w in record[kind] if w is not window]
            record.setdefault(target, []).append(window)
    _take_out(record, {*old} - {w.id for w in edit.windows}, stamp)
    _complete(record, edit.complete, stamp)
    return record


class _Stamp:
    """Who changes windows, and when."""

    def __init__(self, by: str, at: str) -> None:
        self.by, self.at = by, at

    def review(self, status: Verdict) -> dict[str, str]:
        return Review(status=status, by=self.by, at=self.at).model_dump()

    def put(self, window: dict[str, Any], before: Mapping[str, Any], status: Status) -> None:
        """Give ``window`` its review: the old one where nothing differs from ``before``."""
        old = review_of(before)
        decided = old.status if old is not None and old.status in ("accepted", "rejected") else ""
        if window == before and status == decided:
            return
        if status:
            window[REVIEW] = self.review(status)
        elif window != before or old is not None:
            window[REVIEW] = self.review("edited")


def _windows(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in KINDS:
        for window in windows_in(record, kind):
            yield kind, window


def _check_ids(record: Mapping[str, Any], edit: Edit) -> None:
    gone = {window.get("id") for window in windows_in(record, REMOVED)}
    seen: set[str] = set()
    for name in (window.id for window in edit.windows):
        if name in seen or name in gone:
            raise ReviewError(f"dialogue {edit.id!r}: there is, or was, another window {name!r}")
        seen.add(name)


def _set_values(window: dict[str, Any], wanted: EditedWindow, dialogue: Dialogue) -> None:
    """The tool and its values. One that is no text, a number, is shown as text and stays as it is until it
    changes. What rests on a value that changed is found again in the words, or dropped.
    """
    window["name"] = wanted.name
    old = window.get("params") or {}
    shown = params_as_text(old, Counter())
    if window.get("params") is not None and shown == wanted.params:
        return
    changed = {name: value for name, value in wanted.params.items() if shown.get(name) != value}
    kept = {name: value for name, value in old.items() if name in wanted.params or name not in shown}
    window["params"] = kept | changed
    said, _ = mentions(dialogue.turns, changed)
    kept = {
        n: t for n, t in (window.get("value_turns") or {}).items() if n in wanted.params and n not in changed
    }
    turns = kept | said
    window["value_turns"] = turns
    complete = len(turns) == len(wanted.params)
    window["values_seen"] = max(turns.values(), default=1) if complete else None
    if window.get("variants"):
        window["variants"] = {
            n: v for n, v in window["variants"].items() if n in wanted.params and n not in changed
        }


def _set_times(window: dict[str, Any], wanted: EditedWindow) -> None:
    """Coverage and ready window; an unknown one says why."""
    ready = None if wanted.withdrawn else wanted.ready
    for key, value in (("coverage", wanted.coverage), ("ready", ready)):
        if _interval(window.get(key)) != value:
            window[key] = None if value is None else list(value)
    reason = window.get("null_reason", "")
    if ready is not None:
        reason = ""
    elif wanted.withdrawn and reason in ("", UNSURE):
        reason = WITHDRAWN
    elif not wanted.withdrawn and reason in ("", WITHDRAWN):
        reason = UNSURE
    if reason != window.get("null_reason", ""):
        window["null_reason"] = reason


def _interval(value: Sequence[int] | None) -> Interval | None:
    return None if value is None else (value[0], value[1])


def _take_out(record: dict[str, Any], names: set[str], stamp: _Stamp) -> None:
    """Move windows to ``removed``, where they stay as they were."""
    for kind, window in list(_windows(record)):
        if window["id"] in names:
            record[kind] = [w for w in record[kind] if w is not window]
            record.setdefault(REMOVED, []).append({**window, REVIEW: stamp.review("removed")})


def _complete(record: dict[str, Any], complete: bool, stamp: _Stamp) -> None:
    if complete == (record.get(REVIEW) is not None):
        return
    if complete:
        record[REVIEW] = stamp.review("accepted")
    else:
        del record[REVIEW]
