"""Two reviewers' windows against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from proactor.files import SourceError
from proactor.review.agreement import agreement_notes, agreement_table, compare_files
from proactor.review.windows_file import ReviewError
from tests.proactor.review.desk_files import dialogue, put, turns, window


def mark(status: str) -> dict[str, str]:
    return {"status": status, "by": "x", "at": "2026-11-30T10:00:00Z"}


def test_sums_by_tool_verdicts_and_the_dialogues_that_differ_most(tmp_path: Path) -> None:
    yes, no = mark("accepted"), mark("rejected")
    find = {"name": "find", "params": {}}
    a = put(
        tmp_path,
        dialogue("same", window(review=yes)),
        dialogue("moved", window(review=yes), window("f", **find, review=yes)),
        dialogue("alone"),
        name="a.jsonl",
    )
    b = put(
        tmp_path,
        dialogue("same", window(review=yes)),
        dialogue("moved", window(ready=[5, 5], review=yes), window("f", **find, review=no)),
        name="b.jsonl",
    )
    found = compare_files(a, b)
    assert found.only == (1, 0) and found.verdicts == (3, 2)
    assert found.tools["book"].means() == {
        "references": 2,
        "ready_iou": 0.75,
        "coverage_iou": 1.0,
        "exact": 0.5,
    }
    assert found.tools["find"].means()["ready_iou"] == 0  # rejected by one: not a window there
    assert found.dialogues == {"same": 1.0, "moved": 0.25}
    assert agreement_notes(found) == [
        "verdicts: 2 of 3 windows that both decided on are alike",
        "in one file alone: 1 and 0 dialogues, not compared",
        "moved: 0.25",
    ]
    assert agreement_table(found).row_count == 3


def test_a_tool_of_any_name_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = dialogue("odd", window(name="[/x]", review=mark("accepted")))
    found = compare_files(put(tmp_path, odd, name="a.jsonl"), put(tmp_path, odd, name="b.jsonl"))
    Console().print(agreement_table(found))
    assert "[/x]" in capsys.readouterr().out


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a = put(tmp_path, dialogue("one"), name="a.jsonl")
    other = put(tmp_path, dialogue("two"), name="b.jsonl")
    with pytest.raises(ReviewError, match="no dialogue in common"):
        compare_files(a, other)
    words = put(tmp_path, dialogue("one", turns=turns("a", "b", "c", "d", "e")), name="c.jsonl")
    with pytest.raises(ReviewError, match=r"c\.jsonl: dialogue 'one' has other turns"):
        compare_files(a, words)
    with pytest.raises(SourceError, match="no such file"):
        compare_files(a, tmp_path / "none")
