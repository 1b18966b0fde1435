"""Whole files as bytes, JSON or validated JSON; `SourceError` names the file that cannot be read."""

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
    """An unreadable corpus, catalog or saved result. One line: ``file: what`` or ``file:line: what``."""


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Files of ``folder`` for the first pattern that matches any, sorted; ``[folder]`` where it is a file
    itself. Raises SourceError when nothing matches.
    """
    if folder.is_file():
        return [folder]
    for pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            return files
    raise SourceError(f"{folder}: no such file, nor a folder with {' or '.join(patterns)}")


def read_bytes(file: Path) -> bytes:
    """A file's content, decompressed where its name ends in .gz. Raises SourceError when it is unreadable."""
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"{file}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read ({error})") from None


def read_json(file: Path) -> Any:
    """The value of a JSON file, plain or gzip. Raises SourceError, naming the line that is not JSON."""
    return parse_json(read_bytes(file), file)


def parse_json(text: bytes, file: Path, line: int = 1) -> Any:
    """The value of a JSON text at ``line`` of ``file``. Raises SourceError, naming file and line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}:{line + error.lineno - 1}: not JSON ({error.msg})") from None
    except RecursionError:
        raise SourceError(f"{file}:{line}: JSON nested too deeply") from None
    except ValueError as error:  # not UTF-8, or an integer of too many digits
        raise SourceError(f"{file}:{line}: not JSON ({error})") from None


def read_validated(file: Path, kind: TypeAdapter[Value]) -> Value:
    """The value of a JSON file as ``kind``. Raises SourceError, naming file and key, if it does not fit."""
    try:
        return kind.validate_json(read_bytes(file))
    except ValidationError as error:
        raise SourceError(f"{file}: {first_problem(error, top='top level')}") from None


def first_problem(error: ValidationError, top: str = "") -> str:
    """A validation error's first problem in one line, ``key: message``; ``top`` stands for the empty key."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"])) or top
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def folder_hash(folder: str | Path) -> str:
    """Content hash (16 hex digits) of an adapter folder; a path alone can go stale after retraining. Raises
    OSError when there is no such folder.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
