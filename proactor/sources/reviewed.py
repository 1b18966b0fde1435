"""What people decided about windows, as a line of ``windows.jsonl`` keeps it, and what a reader makes of it.

`proactor review` adds three keys that a `Dialogue` does not have. All hold a `Review`:

- ``review`` of a window: accepted, rejected, or edited and not decided yet;
- ``review`` of the dialogue: accepted, no window is missing;
- ``removed`` of the dialogue: windows that a person took out, each with its ``review``.

A rejected window is masked (``null_reason`` "rejected"): acting on it is neither right nor wrong, supervised
training leaves its decision points out. A rejected withdrawn one is left out. A removed one is not there at
all, so a fire is false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proactor.files import first_problem, parse_json, read_bytes, text_lines
from proactor.sources.base import Malformed

Verdict = Literal["edited", "accepted", "rejected", "removed"]
REVIEW, REMOVED = "review", "removed"
REJECTED, UNDECIDED = "rejected", "not_accepted"
"""The ``null_reason`` of a window that was rejected, and of one that nobody accepted (`masked`)."""


class Review(BaseModel):
    """What ``by`` decided ``at`` a time (ISO 8601, UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Verdict
    by: str = Field(min_length=1)
    at: str = Field(min_length=1)


def review_of(value: Mapping[str, Any]) -> Review | None:
    """The review of a window, or of a dialogue. Raises Malformed for one that is none."""
    if (found := value.get(REVIEW)) is None:
        return None
    try:
        return Review.model_validate(found)
    except ValidationError as error:
        raise Malformed(f"{REVIEW}: {first_problem(error)}") from None


def plain(
    record: Mapping[str, Any], counters: Counter[str], *, accepted_only: bool = False
) -> dict[str, Any]:
    """A record without the keys of a review, its rejected windows masked, and with ``accepted_only`` all that
    nobody accepted. Counts ``windows_accepted``, ``windows_edited``, ``windows_rejected`` and
    ``windows_removed``. Raises Malformed for a review that is none.
    """
    review_of(record)
    made = {key: value for key, value in record.items() if key not in (REVIEW, REMOVED)}
    for window in windows_in(record, REMOVED):
        _count(window, counters)
    if isinstance(record.get("references"), list):
        made["references"] = [_masked(w, _count(w, counters), accepted_only) for w in record["references"]]
    if isinstance(record.get("withdrawn"), list):
        reviewed = [(w, _count(w, counters)) for w in record["withdrawn"]]
        made["withdrawn"] = [_bare(w) for w, review in reviewed if not _is(review, "rejected")]
    return made


def windows_in(record: Mapping[str, Any], kind: str) -> list[Any]:
    """The windows under a key of a record; none where it holds no list, which validation refuses."""
    found = record.get(kind)
    return found if isinstance(found, list) else []


def count_reviews(file: Path) -> int:
    """Windows and dialogues of a file of windows that a person decided on. Raises SourceError where it cannot
    be read.
    """
    if f'"{REVIEW}"'.encode() not in read_bytes(file):
        return 0
    found = 0
    for number, text in text_lines(file):
        record = parse_json(text, file, number)
        if isinstance(record, dict):
            kinds = ("references", "withdrawn", REMOVED)
            marks = [record, *(window for kind in kinds for window in windows_in(record, kind))]
            found += sum(isinstance(mark, dict) and mark.get(REVIEW) is not None for mark in marks)
    return found


def _count(window: Any, counters: Counter[str]) -> Review | None:
    review = review_of(window) if isinstance(window, dict) else None
    if review is not None:
        counters[f"windows_{review.status}"] += 1
    return review


def _masked(window: Any, review: Review | None, accepted_only: bool) -> Any:
    if not isinstance(window, dict):
        return window  # validation refuses it
    if _is(review, "rejected"):
        return _bare(window) | {"ready": None, "null_reason": REJECTED}
    if accepted_only and not _is(review, "accepted") and window.get("ready") is not None:
        return _bare(window) | {"ready": None, "null_reason": UNDECIDED}
    return _bare(window)


def _bare(window: Any) -> Any:
    return (
        {key: value for key, value in window.items() if key != REVIEW} if isinstance(window, dict) else window
    )


def _is(review: Review | None, status: Verdict) -> bool:
    return review is not None and review.status == status
