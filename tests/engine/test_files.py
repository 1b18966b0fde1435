"""A folder appears whole or not at all, whatever moment the writer dies at."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from proactor.engine import faults, files
from proactor.engine.files import atomic_file, atomic_folder, open_atomic, recover


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def save(folder: Path, **texts: str) -> None:
    with atomic_folder(folder, owned=("*.bin",)) as temporary:
        for name, text in texts.items():
            (temporary / f"{name}.bin").write_text(text)


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's exchange of two folders and, as elsewhere, without it."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    return str(request.param)


def test_replaces_what_it_owns_and_keeps_the_rest(tmp_path: Path, system: str) -> None:
    folder = tmp_path / "deep" / "save"
    save(folder, a="1", b="1")
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "plot.txt").write_text("also mine")
    save(folder, a="2")
    assert content(folder) == {"a.bin": "2", "notes.txt": "mine", "sub/plot.txt": "also mine"}
    assert [p.name for p in folder.parent.iterdir()] == ["save"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path, system: str) -> None:
    folder = tmp_path / "save"
    save(folder, a="1")
    with pytest.raises(OSError, match="disk"), atomic_folder(folder) as temporary:
        (temporary / "a.bin").write_text("half")
        raise OSError("disk")
    assert content(folder) == {"a.bin": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["save"]


@pytest.mark.parametrize("fault", ["folder.write", "folder.rename", "folder.between"])
def test_killed_at_any_point_the_folder_is_old_or_new(tmp_path: Path, system: str, fault: str) -> None:
    folder = tmp_path / "save"
    save(folder, a="old")
    child = os.fork()
    if child == 0:
        faults._plan = f"{fault}:1"
        faults._passed.clear()
        save(folder, a="new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = fault != "folder.between" or system == "two renames"
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) is killed
    with (
        pytest.raises(OSError, match="disk"),
        atomic_folder(folder),
    ):  # the next writer first puts things right, then fails
        raise OSError("disk")
    assert content(folder) == {"a.bin": "old" if killed else "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["save"], "what the killed writer left is gone"


def test_a_reader_recovers_too(tmp_path: Path) -> None:
    save(tmp_path / "save", a="1")
    (tmp_path / "save").rename(tmp_path / ".save.replaced")
    recover(tmp_path / "save")
    recover(tmp_path / "save")
    assert content(tmp_path / "save") == {"a.bin": "1"}


def test_a_living_writers_folder_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".save.writing-{os.getppid()}"
    other.mkdir()
    save(tmp_path / "save", a="1")
    assert other.is_dir()


def test_follows_a_link_to_the_folder(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    save(real, a="1")
    link.symlink_to(real)
    save(link, a="2")
    assert link.is_symlink() and content(real) == {"a.bin": "2"}


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "save").write_text("a file")
    with pytest.raises(NotADirectoryError):
        save(tmp_path / "save", a="1")
    assert (tmp_path / "save").read_text() == "a file"


def test_files_survive_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no hard links here")

    save(tmp_path / "save", a="1")
    (tmp_path / "save" / "notes.txt").write_text("mine")
    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path / "save", a="2")
    assert content(tmp_path / "save") == {"a.bin": "2", "notes.txt": "mine"}


def test_a_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    atomic_file(path, b"old")
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = path.with_name(f".file.writing-{dead.pid}")
    left.write_bytes(b"half, by a writer that was killed")
    with pytest.raises(OSError, match="disk"), open_atomic(path) as file:
        assert not left.exists()
        file.write(b"half")
        raise OSError("disk")
    assert content(path.parent) == {"file": "old"}
    atomic_file(path, b"new")
    assert content(path.parent) == {"file": "new"}
