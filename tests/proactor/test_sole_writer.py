"""One writer a folder, whatever becomes of the process that held the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from proactor.sole_writer import LOCK, WriterError, sole_writer

HOLD = """
import sys
from proactor.sole_writer import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, repo_root: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock on ``folder`` until its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=repo_root, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path, repo_root: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder, repo_root) as process:
        with pytest.raises(WriterError) as caught, sole_writer(folder):
            pytest.fail("two writers")
        said = str(caught.value)
        assert said.startswith(f"{folder}: another process writes there (pid {process.pid} on ")
        assert f"-c {folder}" in said and ", since 20" in said and "\n" not in said
        process.communicate()
    with sole_writer(folder):
        pass


def test_the_lock_of_a_killed_holder_is_nobodys(tmp_path: Path, repo_root: Path) -> None:
    with holder(tmp_path, repo_root) as process:
        process.kill()
    assert (tmp_path / LOCK).exists()
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_nothing_is_left_behind_but_what_was_written(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "empty"):
        assert (tmp_path / "empty").is_dir()
    with sole_writer(tmp_path / "full"):
        (tmp_path / "full" / "file").write_text("mine")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["full", "full/file"]


def test_one_process_does_not_write_twice_at_once_either(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(WriterError, match=f"pid {os.getpid()}"), sole_writer(tmp_path):
        pytest.fail("two writers")
    link = tmp_path.with_name("link")
    link.symlink_to(tmp_path)
    with sole_writer(tmp_path), pytest.raises(WriterError), sole_writer(link):
        pytest.fail("two writers, by two names of one folder")


def test_of_many_that_ask_at_once_one_at_a_time_writes(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(30):
            try:
                with sole_writer(tmp_path):
                    inside[0] += 1
                    entered[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.001)
                    inside[0] -= 1
            except WriterError:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and entered[0] > 0 and not (tmp_path / LOCK).exists()


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removed it, and another one came, between our opening it and locking it."""
    flock, rival = fcntl.flock, sole_writer(tmp_path)

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        (tmp_path / LOCK).unlink()
        rival.__enter__()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(WriterError), sole_writer(tmp_path):
        pytest.fail("two writers")
    rival.__exit__(None, None, None)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    with pytest.raises(OSError) as caught, sole_writer(tmp_path / "run"):
        pytest.fail("through a link")
    assert caught.value.errno == errno.ELOOP and victim.read_text() == "mine"


def test_where_there_are_no_locks_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with sole_writer(tmp_path / "run", warn=said.append):
        (tmp_path / "run" / "file").write_text("mine")
    (line,) = said
    assert line.startswith(f"{tmp_path / 'run'}: this file system has no locks") and "\n" not in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}'])
def test_a_lock_file_that_says_nothing_still_locks(tmp_path: Path, text: str) -> None:
    with sole_writer(tmp_path):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(WriterError, match="another process writes there; wait"), sole_writer(tmp_path):
            pytest.fail("two writers")


def test_a_name_that_no_folder_can_have_is_refused_by_name() -> None:
    for name in ("a\0b", "a\ud800"):
        with pytest.raises(OSError, match="no file can have this name"), sole_writer(name):
            pytest.fail("locked")
