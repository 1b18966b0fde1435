"""Files that are read or written: regular ones, read up to a length. Every OSError names the file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_FILE = 2**30
"""Bytes of a file that is read whole."""


def open_regular(path: str | Path) -> BinaryIO:
    """An existing file, open for reading.

    Raises OSError for anything else: a pipe would block, a device never end, a name with a NUL is none.
    """
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: str | Path, flags: int) -> int:
    """A descriptor of a regular file, which ``flags`` may create. Raises OSError as `open_regular`."""
    check_name(path)
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_place(path: str | Path) -> None:
    """Raise OSError where a file put at ``path`` would replace something else: a folder, a pipe, a device.

    A link counts as what it leads to; one into /proc, as /dev/stdout is, as a device.
    """
    check_name(path)
    try:
        mode = Path(path).stat().st_mode
        leads_to = str(Path(path).readlink()) if Path(path).is_symlink() else ""
    except OSError:  # nothing there yet; what else is wrong, writing finds
        return
    _check_mode(path, stat.S_IFCHR if leads_to.startswith("/proc/") else mode)


def check_name(path: str | Path) -> None:
    """Raise OSError for a name that no file can have: one with a NUL, or with half of a surrogate pair."""
    try:
        known = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        known = False
    if not known:
        raise OSError(errno.EINVAL, "no file can have this name", str(path))


def _check_mode(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: str | Path, most: int = LARGEST_FILE) -> bytes:
    """The bytes of an existing file. Raises OSError as `open_regular`, and for more than ``most``."""
    with open_regular(path) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else b""
        if len(data) > most or os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return data
