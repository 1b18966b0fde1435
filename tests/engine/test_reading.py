"""Only regular files are read, whole and up to a length; the error names the file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proactor.engine.reading import open_regular, read_regular


def test_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert [read_regular(tmp_path / name, 3) for name in "ab"] == [b"abc"] * 2
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"abc"


def test_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("pipe", "loop", "folder", "socket", "none", "x" * 300, "folder/../pipe"):
            with pytest.raises(OSError) as caught:
                read_regular(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)
    for name in ("/dev/zero", "/", "a\0b"):
        with pytest.raises(OSError) as caught:
            read_regular(name)
        assert caught.value.filename == name


def test_length(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    for name, most in (("sparse", 2**30), ("sparse", 10)):
        with pytest.raises(OSError, match=f"more than {most} bytes"):
            read_regular(tmp_path / name, most)
    assert read_regular("/proc/self/stat", 10_000)  # of a size that the system gives as 0
    with pytest.raises(OSError, match="more than 5 bytes"):
        read_regular("/proc/self/stat", 5)
