"""Files and folders that appear whole or not at all; data that is appended whole or not at all.

A file is written beside its place under a name of its own, flushed to disk, and renamed into it. A full disk
or a kill at any moment leaves what was there before. Links are replaced or removed, never followed; only
`atomic_folder` writes through a link that is named as its folder. What is no file, as a pipe or a device, is
neither replaced nor written to. Every OSError names a file.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from proactor.engine.faults import fault_point
from proactor.engine.reading import check_name, check_place, open_descriptor

AT_FDCWD = -100
RENAME_EXCHANGE = 2
MARK = ".writing-"
"""In the names of temporary files and folders."""


def atomic_file(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically; missing parent folders are made.

    Raises OSError when it cannot be written; an old file is then untouched.
    """
    with open_atomic(path) as file:
        file.write(data)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a temporary file beside ``path``; on leaving without an exception it replaces ``path``.

    On an exception the temporary file is removed and the old one is untouched.
    """
    check_place(path)
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final)
    temporary = _temporary(final)
    try:
        with naming(final, temporary):
            with open(_create(temporary), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
            _sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: str | Path, data: bytes) -> None:
    """Append ``data`` to ``path`` in one write, so that several processes may share a file.

    Raises OSError when it cannot be written whole; what was written of it is then cut off again.
    """
    check_name(path)
    with naming(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            written = os.write(descriptor, data)
            if written < len(data):  # the disk is full; no other process can have written behind it
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """Give an OSError of the block that names no file, as that of a full disk, or ``temporary``, the name
    ``path``.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or str(error.filename) not in ("None", str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove(path: str | Path) -> None:
    """Delete a file, a folder with all that is in it, or a link but not what it leads to.

    Nothing happens where there is nothing. Raises OSError for what cannot be deleted.
    """
    place = Path(path)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, owned: Sequence[str] = ("*",)) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``folder``; on leaving without an exception it replaces ``folder``.

    ``owned`` are the file name patterns of this kind of save. Files of the old folder that match none of them
    are kept. On an exception the temporary folder is removed and the old one is untouched.
    """
    check_name(folder)
    final = Path(folder).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    recover(final)
    _remove_abandoned(final)
    temporary = _temporary(final)
    try:
        with naming(final, temporary):
            temporary.mkdir()
            yield temporary
            fault_point("folder.write")
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync(path)
            _sync(temporary)
            fault_point("folder.rename")
            _swap(temporary, final, owned)
            fault_point("folder.old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: str | Path) -> None:
    """Delete what killed writers left in ``folder``, to be called by its only writer.

    The next writer of a name does so too, but a name may be written no more, or the killed process's id be
    another's by then.
    """
    for left in Path(folder).glob(f".*{MARK}*"):
        remove(left)


def recover(folder: str | Path) -> None:
    """Put back a folder whose writer was killed between its two renames (systems without `renameat2`)."""
    check_name(folder)
    final = Path(folder).resolve()
    aside = _aside(final)
    if aside.is_dir() and not aside.is_symlink() and not final.exists():
        aside.rename(final)


def unfinished(folder: str | Path) -> Path | None:
    """The temporary folder that a writer of ``folder`` left or still fills, or ``folder`` if it is one."""
    final = Path(folder)
    if MARK in final.name and final.name.startswith("."):
        return final
    left = sorted(final.parent.glob(f"{glob.escape(_prefix(final))}*"))
    return left[0] if left else None


def _temporary(final: Path) -> Path:
    """A name that no other process or thread has, nor can guess; it tells whose it is."""
    return final.parent / f"{_prefix(final)}{os.getpid()}-{secrets.token_hex(6)}"


def _prefix(final: Path) -> str:
    return f".{_cut(final.name)}{MARK}"


def _cut(name: str) -> str:
    """As much of a name as leaves room for what is put around it, within the 255 bytes of a file name."""
    return os.fsencode(name)[:200].decode(errors="ignore")


def _create(path: Path) -> int:
    """A descriptor of a new file. An existing one, or a link, is an error."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _remove_abandoned(final: Path) -> None:
    """Delete the temporary files and folders of writers that were killed; those of living processes stay."""
    prefix = _prefix(final)
    with os.scandir(final.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    for name in names:
        process = name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not _alive(int(process)):
            with suppress(OSError):  # not ours, or removed meanwhile: it is in nobody's way
                remove(final.parent / name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _aside(final: Path) -> Path:
    return final.parent / f".{_cut(final.name)}.replaced"


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(temporary: Path, final: Path, owned: Sequence[str]) -> None:
    """Put ``temporary`` in the place of ``final``. If ``temporary`` still exists, it can be deleted."""
    if not final.exists():
        temporary.rename(final)
    else:
        if not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
        # Kept files are linked into the new folder before the swap, so that a kill cannot lose one.
        for old in final.iterdir():
            new = temporary / old.name
            if not new.exists() and not any(fnmatch(old.name, pattern) for pattern in owned):
                _duplicate(old, new)
        if not _exchange(temporary, final):
            shutil.rmtree(_aside(final), ignore_errors=True)
            final.rename(_aside(final))
            fault_point("folder.between")
            temporary.rename(final)
            shutil.rmtree(_aside(final), ignore_errors=True)
    _sync(final.parent)


def _duplicate(old: Path, new: Path) -> None:
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, new, symlinks=True, copy_function=_link)
    else:
        _link(old, new)


def _link(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(old, new, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step (Linux renameat2); False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    code: int = rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    return code == 0
