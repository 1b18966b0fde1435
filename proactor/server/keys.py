"""`Keys`: who may ask. Kept as digests, compared in constant time, never shown."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from proactor.engine import ProactorError
from proactor.files import read_text
from proactor.transport import read_key

SHORTEST = 16
"""Characters of a key: a shorter one can be guessed."""


class KeyFileError(ProactorError):
    """Keys that cannot be used; the line names the place and shows no key."""


class Keys:
    """The keys of a server; without any, everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"{len(self._digests)} keys"

    def admit(self, authorization: str) -> bool:
        """Whether the value of a header ``Authorization`` (``Bearer KEY``) has one of the keys."""
        scheme, _, key = authorization.partition(" ")
        digest = sha256(key.strip().encode(errors="replace")).digest()
        found = False
        for known in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(known, digest)
        return (found and scheme.lower() == "bearer") or not self._digests

    @classmethod
    def read(cls, file: Path | None, variable: str | None = None) -> Keys:
        """The keys of a file, one a line (empty lines and those with ``#`` before them aside), and that of an
        environment variable. Raises KeyFileError, SourceError or TransportError, without the key.
        """
        keys: list[str] = []
        if file is not None:
            lines = read_text(file).splitlines()
            for number, line in enumerate(map(str.strip, lines), 1):
                if line and not line.startswith("#"):
                    keys.append(_checked(line, f"{file}:{number}"))
            if not keys:
                raise KeyFileError(f"{file}: no key in it; one a line")
        if variable is not None:
            keys.append(_checked(read_key(variable), f"the environment variable {variable}"))
        return cls(keys)


def _checked(key: str, where: str) -> str:
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise KeyFileError(
            f"{where}: a key is at least {SHORTEST} printable ASCII characters without a space"
        )
    return key
