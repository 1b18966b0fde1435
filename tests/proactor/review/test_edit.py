"""What an edit does to a record: only what differs, with who and when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.review.edit import Edit, EditedWindow, apply
from proactor.review.windows_file import Entry, ReviewError, WindowsFile
from tests.proactor.review.desk_files import CATALOG, ODD, dialogue, put, window

AT = "2026-11-30T10:00:00Z"
BY_ANNA = {"status": "accepted", "by": "anna", "at": AT}


def entry_of(folder: Path, record: dict[str, Any] | str) -> Entry:
    return next(iter(WindowsFile(put(folder, record)).entries().values()))


def shown(entry: Entry) -> list[EditedWindow]:
    """The windows of an entry as the page sends them back unchanged."""
    listed = [(w, kind) for kind in ("references", "withdrawn") for w in entry.record.get(kind, [])]
    return [
        EditedWindow(
            id=w["id"],
            name=w["name"],
            params=w["params"],
            coverage=w["coverage"],
            ready=w["ready"],
            withdrawn=kind == "withdrawn",
            status=status if (status := w.get("review", {}).get("status", "")) != "edited" else "",
        )
        for w, kind in listed
    ]


def edited(entry: Entry, *windows: EditedWindow, complete: bool = False) -> dict[str, Any]:
    edit = Edit(id=entry.dialogue.id, version=entry.version, windows=windows, complete=complete)
    return apply(entry, edit, CATALOG, "anna", AT)


def changed(entry: Entry, **fields: Any) -> dict[str, Any]:
    """The first reference after an edit of its fields; nothing beside it may differ."""
    first, *rest = shown(entry)
    record = edited(entry, EditedWindow(**{**first.model_dump(), **fields}), *rest)
    assert {**record, "references": 0, "withdrawn": 0} == {**entry.record, "references": 0, "withdrawn": 0}
    (made,) = record["references"] or record["withdrawn"]
    return made


def test_an_edit_that_changes_nothing_gives_the_same_record(tmp_path: Path) -> None:
    for record in (dialogue(), ODD, dialogue("d", window(review=BY_ANNA), window("b", review=BY_ANNA))):
        entry = entry_of(tmp_path, record)
        assert json.dumps(edited(entry, *shown(entry))) == json.dumps(entry.record)


def test_accepting_adds_who_and_when_and_keeps_other_keys_in_their_order(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, ODD)
    made = changed(entry, status="accepted")
    assert made == entry.record["references"][0] | {"review": BY_ANNA}
    assert list(made)[:-1] == list(entry.record["references"][0]) and list(made)[-1] == "review"


def test_ends_move_and_the_review_says_edited(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, dialogue())
    made = changed(entry, ready=(5, 5))
    assert made["ready"] == [5, 5] and made["review"]["status"] == "edited"
    assert {**made, "ready": 0, "review": 0} == {**window(), "ready": 0, "review": 0}


def test_another_reviewers_stamp_stays_on_what_i_did_not_touch(tmp_path: Path) -> None:
    bert = {"status": "accepted", "by": "bert", "at": "2026-01-01T00:00:00Z"}
    entry = entry_of(tmp_path, dialogue("d", window("a", review=bert), window("b")))
    first, second = shown(entry)
    record = edited(entry, first, EditedWindow(**{**second.model_dump(), "status": "rejected"}))
    assert [w["review"]["by"] for w in record["references"]] == ["bert", "anna"]
    record = edited(entry, EditedWindow(**{**first.model_dump(), "ready": (5, 5)}), second)
    assert record["references"][0]["review"] == BY_ANNA and "review" not in record["references"][1]


def test_a_value_that_changes_is_found_again_in_the_words(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, dialogue("d", window(variants={"day": ["mon"]})))
    made = changed(entry, params={"day": "Tuesday"})
    assert made["params"] == {"day": "Tuesday"} and made["variants"] == {}
    assert made["value_turns"] == {"day": 5} and made["values_seen"] == 5
    made = changed(entry, params={"day": "Monday", "size": "large"})
    assert made["value_turns"] == {"day": 1} and made["values_seen"] is None
    assert made["variants"] == {"day": ["mon"]}


def test_an_unknown_window_says_why_and_a_known_one_does_not(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, dialogue())
    assert changed(entry, ready=None)["null_reason"] == "unsure"
    entry = entry_of(tmp_path, dialogue("d", window(ready=None, null_reason="never_ready")))
    assert changed(entry, coverage=(1, 3))["null_reason"] == "never_ready"
    assert changed(entry, ready=(3, 3))["null_reason"] == ""


def test_an_action_that_was_taken_back_moves_and_comes_back(tmp_path: Path) -> None:
    made = changed(entry_of(tmp_path, dialogue()), withdrawn=True)
    assert (made["ready"], made["null_reason"]) == (None, "withdrawn")
    record = dialogue()
    record |= {"withdrawn": [made], "references": []}
    back = changed(entry_of(tmp_path, record), withdrawn=False, ready=(3, 3))
    assert (back["ready"], back["null_reason"]) == ([3, 3], "")


def test_a_window_is_added_and_taken_out_and_stays_in_the_file(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, dialogue())
    new = EditedWindow(id="added-1", name="find", coverage=(3, 3), ready=(3, 3), status="accepted")
    record = edited(entry, new)
    (added,) = record["references"]
    assert added["review"] == BY_ANNA and added["values_seen"] == 1 and added["params"] == {}
    assert record["removed"] == [window() | {"review": BY_ANNA | {"status": "removed"}}]
    after = entry_of(tmp_path, record)
    again = EditedWindow(id="a1", name="find")
    with pytest.raises(ReviewError, match="was, another window 'a1'"):
        edited(after, *shown(after), again)


def test_a_dialogue_without_windows_is_complete(tmp_path: Path) -> None:
    record = dialogue()
    record["references"] = []
    entry = entry_of(tmp_path, record)
    made = edited(entry, complete=True)
    assert made["review"] == BY_ANNA
    assert edited(entry_of(tmp_path, made), complete=False) == record


def test_a_window_named_twice_and_an_unknown_tool_are_refused(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, dialogue())
    (first,) = shown(entry)
    with pytest.raises(ReviewError, match="another window 'a1'"):
        edited(entry, first, first)
    with pytest.raises(ReviewError, match=r"tool 'fly' is not in catalog\.json"):
        edited(entry, EditedWindow(**{**first.model_dump(), "name": "fly"}))
