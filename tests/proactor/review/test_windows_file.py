"""A file under review: one line replaced, the rest kept byte by byte; whoever comes second is refused."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proactor.files import SourceError
from proactor.review.windows_file import Conflict, Entry, ReviewError, WindowsFile
from proactor.sole_writer import WriterError, sole_writer
from tests.proactor.review.desk_files import ODD, dialogue, lines_of, put, window


def renamed(entry: Entry) -> Mapping[str, Any]:
    return {**entry.record, "domain": "changed"}


def test_one_line_changes_and_the_others_keep_their_bytes(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one"), ODD, dialogue("three"))
    path.chmod(0o600)
    before = lines_of(path)
    file = WindowsFile(tmp_path)
    file.change("one", file.entry("one").version, renamed)
    after = lines_of(path)
    assert after[1:] == before[1:] and json.loads(after[0]) == json.loads(before[0]) | {"domain": "changed"}
    assert list(json.loads(after[0])) == list(json.loads(before[0]))
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["catalog.json", "windows.jsonl"]


def test_a_file_without_a_last_line_break_keeps_none(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one"), dialogue("two"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    file = WindowsFile(path)
    file.change("two", file.entry("two").version, renamed)
    assert not path.read_bytes().endswith(b"\n") and len(WindowsFile(path).entries()) == 2


@pytest.mark.parametrize("removed", [[{"id": ["a"]}], [{}], ["a"], "a"])
def test_windows_taken_out_need_ids(tmp_path: Path, removed: Any) -> None:
    path = put(tmp_path, dialogue("one") | {"removed": removed})
    with pytest.raises(SourceError, match=r"windows\.jsonl:1: .*removed: not a list of windows"):
        WindowsFile(path)


def test_a_change_of_what_was_looked_at_before_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one"), dialogue("two"))
    mine, theirs = WindowsFile(path), WindowsFile(path)
    version = mine.entry("one").version
    theirs.change("one", version, renamed)
    saved = path.read_bytes()
    with pytest.raises(Conflict, match=r"'one' was changed meanwhile"):
        mine.change("one", version, lambda entry: {**entry.record, "domain": "lost?"})
    assert path.read_bytes() == saved
    mine.change("two", mine.entry("two").version, renamed)  # another dialogue is nobody's loss
    assert [json.loads(line)["domain"] for line in lines_of(path)] == ["changed", "changed"]


def test_an_editor_may_change_the_file_meanwhile(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one"), dialogue("two"))
    file = WindowsFile(path)
    version = file.entry("two").version
    path.write_text(path.read_text().replace('"one"', '"uno"'))
    file.change("two", version, renamed)
    assert list(WindowsFile(path).entries()) == ["uno", "two"]
    with pytest.raises(Conflict, match=r"not in .* any more"):
        file.entry("one")
    path.write_text("{broken\n")
    with pytest.raises(SourceError, match=r"windows.jsonl:1: not JSON"):
        file.change("two", version, renamed)
    assert path.read_text() == "{broken\n"
    path.unlink()
    with pytest.raises(SourceError, match="no such file any more"):
        file.entries()


def test_undo_brings_the_bytes_back(tmp_path: Path) -> None:
    path = put(tmp_path, ODD)
    before = path.read_bytes()
    file = WindowsFile(path)
    first = file.entry("odd").version
    second = file.change("odd", first, renamed).version
    third = file.change("odd", second, lambda entry: {**entry.record, "domain": "again"}).version
    with pytest.raises(Conflict):
        file.undo("odd", second, first)
    assert file.undo("odd", third, second).version == second
    assert file.undo("odd", second, first).version == first
    assert path.read_bytes() == before
    with pytest.raises(ReviewError, match="nothing to undo"):
        WindowsFile(path).undo("odd", first, second)


def test_who_writes_there_already_is_waited_for(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one"))
    other = put(tmp_path, dialogue("one"), name="anna.jsonl")
    file, mine = WindowsFile(path), WindowsFile(other)
    with sole_writer(tmp_path):  # as `annotate` does
        with pytest.raises(WriterError, match="another process writes there"):
            file.change("one", file.entry("one").version, renamed)
        mine.change("one", mine.entry("one").version, renamed)  # a file of one's own
    file.change("one", file.entry("one").version, renamed)


def test_threads_do_not_lose_each_others_changes(tmp_path: Path) -> None:
    names = [f"d{i}" for i in range(12)]
    path = put(tmp_path, *map(dialogue, names))
    file = WindowsFile(path)

    def work(name: str) -> None:
        file.change(name, file.entry(name).version, renamed)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {json.loads(line)["domain"] for line in lines_of(path)} == {"changed"}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    real = put(tmp_path / "real", dialogue("one"))
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    file = WindowsFile(link)
    file.change("one", file.entry("one").version, renamed)
    assert link.is_symlink() and "changed" in real.read_text()


def test_half_a_character_in_another_key_survives(tmp_path: Path) -> None:
    path = put(tmp_path, dialogue("one", note="\ud83d"))
    file = WindowsFile(path)
    file.change("one", file.entry("one").version, renamed)
    assert json.loads(lines_of(path)[0])["note"] == "\ud83d"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no dialogues"),
        ([dialogue("one"), "", dialogue("two")], ":2: empty line"),
        ([dialogue("one"), dialogue("one")], ":2: dialogue 'one' appears twice"),
        (['{"id": "t", "turns": [{"speaker": "user", "text": "hi"}]}'], ":1: no windows as .*annotate"),
        ([dialogue("one", window(ready=[1, 9]))], ":1: references.0: .*outside coverage"),
        ([dialogue("one", window(review={"status": "liked"}))], ":1: review: status"),
        (["[]"], ":1: not an object"),
    ],
)
def test_what_is_no_file_of_windows_is_refused_by_line(
    tmp_path: Path, lines: list[Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        WindowsFile(put(tmp_path, *lines))


def test_no_file_and_a_packed_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file; WINDOWS is what"):
        WindowsFile(tmp_path)
    (tmp_path / "a.jsonl.gz").write_bytes(b"x")
    with pytest.raises(SourceError, match="packed"):
        WindowsFile(tmp_path / "a.jsonl.gz")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, dialogue("one"))
    before = path.read_bytes()
    file = WindowsFile(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.change("one", file.entry("one").version, renamed)
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.glob(".*")] == []
    file.change("one", file.entry("one").version, renamed)
    assert fcntl and "changed" in path.read_text()
