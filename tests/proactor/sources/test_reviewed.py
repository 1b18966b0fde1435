"""What a reader makes of windows that people decided on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proactor.annotation import AnnotationError, annotate
from proactor.annotation.log_oracle import LogOracle
from proactor.dialogue.prompt import unknowable
from proactor.files import SourceError
from proactor.sources import load
from proactor.sources.reviewed import count_reviews
from tests.proactor.review.desk_files import CATALOG, dialogue, put, window


def mark(status: str) -> dict[str, str]:
    return {"status": status, "by": "anna", "at": "2026-11-30T10:00:00Z"}


def reviewed(**fields: Any) -> dict[str, Any]:
    return dialogue(
        "one",
        window("yes", review=mark("accepted")),
        window("no", coverage=[7, 7], ready=[7, 7], review=mark("rejected")),
        window("some", name="find", params={}, review=mark("edited")),
        window("none", name="find", params={}, coverage=[7, 7], ready=[7, 7]),
        removed=[window("gone", review=mark("removed"))],
        review=mark("accepted"),
        **fields,
    )


def test_a_rejected_window_is_masked_and_the_rest_is_trained_on(tmp_path: Path) -> None:
    taken_back = [window("back", review=mark("rejected")), window("kept", review=mark("accepted"))]
    put(tmp_path, reviewed(withdrawn=[w | {"ready": None} for w in taken_back]))
    corpus = load("jsonl", tmp_path)
    (read,) = corpus.dialogues
    ready = {r.id: (r.ready, r.null_reason) for r in read.references}
    assert ready == {
        "yes": ((3, 5), ""),
        "no": (None, "rejected"),
        "some": ((3, 5), ""),
        "none": ((7, 7), ""),
    }
    assert [r.id for r in read.withdrawn] == ["kept"]
    assert unknowable(read, 7) and not unknowable(read, 1)  # supervised training leaves turn 7 out
    counted = {key: n for key, n in corpus.counters.items() if key.startswith("windows_")}
    assert counted == {
        "windows_accepted": 2,
        "windows_rejected": 2,
        "windows_edited": 1,
        "windows_removed": 1,
    }
    assert corpus.counters["null_rejected"] == 1


def test_only_what_was_accepted_on_request(tmp_path: Path) -> None:
    put(tmp_path, reviewed())
    (read,) = load("jsonl", tmp_path, undecided="mask").dialogues
    assert {r.id: r.null_reason for r in read.references if r.ready is None} == {
        "no": "rejected",
        "some": "not_accepted",
        "none": "not_accepted",
    }


def test_a_review_that_is_none_is_refused_by_line(tmp_path: Path) -> None:
    put(tmp_path, dialogue(), dialogue("two", window(review={"status": "accepted"})))
    with pytest.raises(SourceError, match=r"windows\.jsonl:2: review: by: Field required"):
        load("jsonl", tmp_path)


def test_annotate_does_not_write_over_reviews(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one", window(params={"review": "no review"})))
    dialogues = load("jsonl", tmp_path).dialogues
    assert count_reviews(path) == 0
    annotate(dialogues, CATALOG, LogOracle(), tmp_path, fresh=True)
    path = put(tmp_path, reviewed())
    before = path.read_bytes()
    assert count_reviews(path) == 5
    for fresh in (False, True):
        with pytest.raises(AnnotationError, match="holds 5 decisions of reviewers"):
            annotate(dialogues, CATALOG, LogOracle(), tmp_path, fresh=fresh)
    assert path.read_bytes() == before
