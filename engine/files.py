"""Folders that appear whole or not at all: written beside their place, flushed, then swapped in.

A full disk or a kill at any moment leaves what was there before. Files in the old folder that the writer does
not own survive the swap.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from proactor.engine import faults

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(folder: str | Path, owned: Sequence[str] = ("*",)) -> Iterator[Path]:
    """Yield an empty temporary sibling of `folder`; on leaving without an exception it takes the folder's
    place in one rename.

    `owned` are file name patterns of this kind of save: such files of an earlier save disappear with it,
    anything else found in the old folder is kept. On an exception the temporary folder is removed and the old
    one is untouched.
    """
    final = Path(folder).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    recover(final)
    _remove_abandoned(final)
    temporary = final.with_name(f".{final.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        faults.point("folder.write")
        _flush(temporary)
        faults.point("folder.rename")
        _swap(temporary, final, owned)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(folder: str | Path) -> None:
    """Put back a folder whose replacement was cut off between its two renames (only where the system has no
    exchange).
    """
    final = Path(folder).resolve()
    aside = _aside(final)
    if aside.exists() and not final.exists():
        aside.rename(final)


def _remove_abandoned(final: Path) -> None:
    """Delete the temporary folders of writers that were killed; those of living processes stay."""
    for path in final.parent.glob(f".{final.name}.writing-*"):
        process = path.name.rpartition("-")[2]
        if process.isdecimal() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _flush(folder: Path) -> None:
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(temporary: Path, final: Path, owned: Sequence[str]) -> None:
    """After this `final` is the new folder and `temporary`, if it still exists, holds what may be deleted."""
    if not final.exists():
        temporary.rename(final)
    else:
        if not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(final))
        # Kept files enter the new folder before the swap, as links: at no moment is one of them only in a
        # folder about to go.
        for old in final.iterdir():
            new = temporary / old.name
            if not new.exists() and not any(fnmatch(old.name, pattern) for pattern in owned):
                _duplicate(old, new)
        if not _exchange(temporary, final):
            shutil.rmtree(_aside(final), ignore_errors=True)
            final.rename(_aside(final))
            faults.point("folder.between")
            temporary.rename(final)
            shutil.rmtree(_aside(final), ignore_errors=True)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
