"""One writer a folder: a lock that a process holds while it writes there. Readers need none.

The lock is `flock` on a file: the kernel drops it with the process that holds it, however that one ended, so
a killed run leaves nothing to clear away. The file says who holds it, for the line that refuses another one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proactor.engine import ProactorError, check_name, naming

LOCK = ".writer.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What `flock` answers on a file system without it."""
LONGEST_COMMAND = 200


class WriterError(ProactorError):
    """Another process writes here. The message is one line and names that process."""


def _warn(text: str) -> None:
    print(f"proactor: {text}", file=sys.stderr)


@contextmanager
def sole_writer(
    folder: str | Path, file: str | Path | None = None, warn: Callable[[str], None] = _warn
) -> Iterator[None]:
    """Hold the lock on ``folder``, which is made if need be, and removed again if nothing was written.

    ``file``: the lock file, where it cannot lie inside (default: `LOCK` in the folder); gone afterwards.
    On a file system without locks ``warn`` is told, and nothing is held. A second lock on one folder is
    refused in the same process too. Raises WriterError, naming the holder, or OSError where the lock file
    cannot be made.
    """
    check_name(folder)
    folder = Path(folder)
    place = Path(file) if file is not None else folder / LOCK
    made = not place.parent.exists()
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder, place, warn)
    try:
        with naming(place):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _holder().encode())
        yield
    finally:
        place.unlink(missing_ok=True)  # before the lock is dropped: the name is ours until then
        os.close(descriptor)
        if made:
            with suppress(OSError):  # not empty: it was written to
                place.parent.rmdir()


def _acquire(folder: Path, place: Path, warn: Callable[[str], None]) -> int:
    """A descriptor of the file ``place``, locked."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = _described(os.read(descriptor, 4096))
            os.close(descriptor)
            raise WriterError(
                f"{folder}: another process writes there{held_by}; wait for it, or end it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            warn(f"{folder}: this file system has no locks; no other process may write there meanwhile")
            return descriptor
        if _is(descriptor, place):
            return descriptor
        os.close(descriptor)  # its holder removed the file between our opening and locking it


def _is(descriptor: int, place: Path) -> bool:
    """Whether the open file is still the one at ``place``."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.lstat())
    except FileNotFoundError:
        return False


def _holder() -> str:
    command = " ".join(map(shlex.quote, [Path(sys.argv[0]).name, *sys.argv[1:]]))
    return json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": command[:LONGEST_COMMAND],
        }
    )


def _described(text: bytes) -> str:
    """The holder, as the lock file tells it; empty while that one is still writing it."""
    try:
        holder = json.loads(text)
        words = "pid {pid} on {host}, since {since}: {command}".format(**holder)
    except (ValueError, KeyError, TypeError):
        return ""
    return f" ({' '.join(words.split())})"
