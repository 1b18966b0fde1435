"""Finished dialogues on disk."""

from __future__ import annotations

from pathlib import Path

from proactor.annotation.record import DialogueRecord
from proactor.annotation.store import RecordStore
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
