"""A folder appears whole or not at all, whatever moment the writer dies at."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from proactor.engine import faults, files
from proactor.engine.files import append, atomic_file, atomic_folder, open_atomic, recover, remove


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


@pytest.mark.parametrize("fault", ["folder.write", "folder.rename", "folder.between", "folder.old"])
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
    assert content(folder) == {"a.bin": "old" if killed and fault != "folder.old" else "new"}
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


# -- names of their own ---


def test_a_planted_link_in_the_place_of_a_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever guesses the name gains nothing: the file must be new."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    place = tmp_path / "out"
    place.mkdir()
    (place / f".file.writing-{os.getpid()}").symlink_to(victim)
    (place / f".folder.writing-{os.getpid()}").symlink_to(tmp_path)
    atomic_file(place / "file", b"new")
    save(place / "folder", a="1")
    assert victim.read_text() == "mine" and (place / "file").read_bytes() == b"new"
    assert content(place / "folder") == {"a.bin": "1"}
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (place / f".file.writing-{os.getpid()}-guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        atomic_file(place / "file", b"newer")
    assert victim.read_text() == "mine" and (place / "file").read_bytes() == b"new"


def test_what_a_dead_writer_left_goes_and_links_in_it_are_not_followed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = tmp_path / "kept"
    save(kept, a="1")
    left = tmp_path / f".save.writing-{dead.pid}-00"
    left.mkdir()
    (left / "link").symlink_to(kept)
    (tmp_path / f".save.writing-{dead.pid}-01").symlink_to(kept)
    save(tmp_path / "save", a="2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "save"]
    assert content(kept) == {"a.bin": "1"}


def test_two_threads_write_one_file_at_a_time_each_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open_atomic(path) as first:
        first.write(b"first, longer")
        atomic_file(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first, longer" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "[x]*?"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path: Path, name: str) -> None:
    atomic_file(tmp_path / name, b"1")
    atomic_file(tmp_path / name, b"2")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"2")]


# -- a disk that is full ---


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_full_disk_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "deep" / "file"
    atomic_file(path, b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, call, full)
        atomic_file(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "fsync", full)
        save(tmp_path / "folder", a="1")
    assert caught.value.filename == str(tmp_path / "folder")
    assert content(tmp_path) == {"deep/file": "old"}


def test_a_name_that_is_taken_by_a_folder_is_told_as_that_name(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        atomic_file(tmp_path / "taken", b"x")
    assert caught.value.filename == str(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_data_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "lines"
    append(path, b"one\n")
    append(path, b"two\n")
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2])

    for broken in (half, full):
        with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
            patch.setattr(os, "write", broken)
            append(path, b"three\n")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"one\ntwo\n"


def test_what_is_removed_is_a_name_and_never_what_a_link_leads_to(tmp_path: Path) -> None:
    save(tmp_path / "kept", a="1")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "link", "nothing"):
        remove(tmp_path / name)
    assert content(tmp_path) == {"kept/a.bin": "1"}


def test_what_is_no_file_is_neither_replaced_nor_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "standard input").symlink_to("/proc/self/fd/0")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to folder").symlink_to("folder")
    before = {p.name: p.lstat().st_mode for p in tmp_path.iterdir()}
    names = [str(tmp_path / name) for name in (*before, "folder/..")]
    for name in (*names, "/", "", ".", "a\0b", "a\ud800", "x" * 300):
        for write in (atomic_file, append) if name != str(tmp_path / "standard input") else (atomic_file,):
            with pytest.raises(OSError) as caught:
                write(name, b"x")
            assert str(caught.value.filename) in (name, ".")
    for name in ("a\0b", "a\ud800"):
        with pytest.raises(OSError, match="no file can have this name"):
            save(Path(name), a="1")
    assert {p.name: p.lstat().st_mode for p in tmp_path.iterdir()} == before


def test_a_link_to_a_file_or_to_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")
    for target in ("kept", "nothing"):
        (tmp_path / "link").symlink_to(target)
        atomic_file(tmp_path / "link", b"new")
        assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()
        remove(tmp_path / "link")
    assert content(tmp_path) == {"kept": "old"}
