"""Files that are read whole, or refused in one line that names file and place."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from proactor.engine import ProactorError

Value = TypeVar("Value")


class SourceError(ProactorError):
    """A corpus that cannot be read: one line, `file:line: what` (no line where there is none)."""


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Files of `folder` for the first pattern that has any, sorted; a file is itself. SourceError when there
    are none.
    """
    if folder.is_file():
        return [folder]
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found
    raise SourceError(f"{folder}: no such file, nor a folder with {' or '.join(patterns)}")


def read_bytes(file: Path) -> bytes:
    """A file's content, unpacked where it is gzip; SourceError when it cannot be read."""
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read ({error})") from None


def read_json(file: Path) -> Any:
    """A JSON file, plain or gzip; SourceError with the line where it is not JSON."""
    try:
        return json.loads(read_bytes(file))
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 ({error})") from None


def read_validated(path: Path, kind: TypeAdapter[Value]) -> Value:
    """A JSON file of a run's folder as ``kind``. SourceError, one line, names the file and the key."""
    try:
        return kind.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SourceError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'top level'}: {first['msg']}"
        ) from None


def folder_hash(folder: str | Path) -> str:
    """Content hash (16 hex digits) of an adapter folder; a path alone can go stale after retraining. Raises
    OSError where there is no such folder.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
