"""Finished dialogues on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proactor.annotation.record import DialogueRecord
from proactor.annotation.store import AnnotationError, RecordStore
from tests.proactor.annotation.scripted import talk


def record(name: str) -> DialogueRecord:
    return DialogueRecord(id=name, digest="0", dialogue=talk("hi", id=name))


def test_a_torn_line_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also when it was longer than all that is written after it."""
    path = tmp_path / "partial"
    first = RecordStore(path, "f")
    first.add(record("a"))
    path.write_bytes(path.read_bytes() + b'{"id":"' + b"x" * 9000)
    second = RecordStore(path, "f")
    assert list(second.records) == ["a"]
    second.add(record("b"))
    assert list(RecordStore(path, "f").records) == ["a", "b"] and path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "header",
    [
        b'{"fingerprint": "\xff"}',
        b"[" * 100_000,
        b"9" * 5000,
        b"5",
        b'{"fingerprint": 5}',
        b"{}",
        b"\xff\xfe{",
    ],
    ids=["no UTF-8", "deep", "digits", "number", "type", "key", "UTF-16"],
)
def test_a_damaged_header_is_one_line(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    path.write_bytes(header + b"\n")
    with pytest.raises(AnnotationError, match="partial:1: damaged; --fresh starts over"):
        RecordStore(path, "f")
    assert path.read_bytes() == header + b"\n"


def test_what_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError) as caught:
            RecordStore(tmp_path / name, "f")
        assert caught.value.filename == str(tmp_path / name)
    assert (tmp_path / "folder" / "mine").read_text() == "kept" and (tmp_path / "pipe").is_fifo()
