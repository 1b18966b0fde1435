"""Whole files as bytes, text or JSON; `SourceError` names the file that cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from proactor.engine import LARGEST_FILE, ProactorError, open_regular, read_regular

Value = TypeVar("Value")

LONGEST_LINE = 2**26
"""Bytes of a line of a JSONL file, which is one dialogue, unpacked."""
LONGEST_INTEGER = 300
"""Characters of an integer in JSON: a longer one fits no float."""


class SourceError(ProactorError):
    """An unreadable corpus, catalog or saved result. One line: ``file: what`` or ``file:line: what``."""


class EncodingError(SourceError):
    """A text that is not UTF-8."""


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


def read_bytes(file: Path, most: int = LARGEST_FILE) -> bytes:
    """A file's content, decompressed where its name ends in .gz. Raises SourceError when it is unreadable, or
    has more than ``most`` bytes.
    """
    try:
        if file.suffix != ".gz":
            return read_regular(file, most)
        with open_regular(file) as packed, gzip.open(packed) as stream:
            data = stream.read(most + 1)
    except FileNotFoundError:
        raise SourceError(f"{file}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read ({reason(error)})") from None
    if len(data) > most:
        raise SourceError(f"{file}: cannot be read (more than {most} bytes, unpacked)")
    return data


def text_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes without the line break) of a file's lines, gzip or plain. Raises SourceError for an
    empty line and for a file that breaks off.
    """
    number = 0
    try:
        with open_regular(file) as plain, gzip.open(plain) if file.suffix == ".gz" else plain as stream:
            while text := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(text) > LONGEST_LINE:
                    raise SourceError(f"{file}:{number}: a line of more than {LONGEST_LINE} bytes")
                if not text.strip():
                    raise SourceError(f"{file}:{number}: empty line")
                yield number, text.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}:{number + 1}: cannot be read ({reason(error)})") from None


def reason(error: Exception) -> str:
    """What an error of reading says, without the file's name, which stands before it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_text(file: Path) -> str:
    """A file's text. SourceError when it cannot be read, EncodingError when it is not UTF-8."""
    return decoded(read_bytes(file), file)


def decoded(text: bytes, file: Path, line: int = 1, *, errors: str = "strict") -> str:
    """UTF-8 that begins at ``line`` of ``file``, as text; a byte order mark before it is left out.

    ``errors``: as in `bytes.decode`. Raises EncodingError, naming the line and the byte.
    """
    try:
        return text.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:  # its object is what follows the mark
        line += error.object.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        raise EncodingError(f"{file}:{line}: not UTF-8 (byte 0x{byte:02x}); write it in UTF-8") from None


def valid_utf8(text: str) -> str:
    """`text` with lone surrogates (JSON can escape half of a pair, as in a cut emoji) as question marks: they
    are no UTF-8 and would fail later in a tokenizer, a request or a log.
    """
    return text.encode("utf-8", "replace").decode()


def read_json(file: Path) -> Any:
    """The value of a JSON file, plain or gzip. Raises SourceError, naming the line that is not JSON."""
    return parse_json(read_bytes(file), file)


def parse_json(text: bytes, file: Path, line: int = 1) -> Any:
    """The value of a JSON text at ``line`` of ``file``. Raises SourceError, naming file and line."""
    # Of bytes, json would take UTF-16 and UTF-32 too, which no other reader here does.
    plain = decoded(text, file, line, errors="surrogatepass")
    try:
        return json.loads(plain, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}:{line + error.lineno - 1}: not JSON ({error.msg})") from None
    except RecursionError:
        raise SourceError(f"{file}:{line}: JSON nested too deeply") from None
    except ValueError as error:  # an integer that is too long
        raise SourceError(f"{file}:{line}: not JSON ({error})") from None


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits)} characters")
    return int(digits)


def read_validated(file: Path, kind: TypeAdapter[Value]) -> Value:
    """The value of a JSON file as ``kind``. Raises SourceError, naming file and key, if it does not fit, or
    the line that is not UTF-8.
    """
    text = read_text(file)
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        raise SourceError(f"{file}: {first_problem(error, top='top level')}") from None


def first_problem(error: ValidationError, top: str = "") -> str:
    """A validation error's first problem in one line, ``key: message``; ``top`` stands for the empty key."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"])) or top
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def settings_problem(error: ValidationError, hint: Callable[[tuple[int | str, ...]], str]) -> tuple[str, str]:
    """The dotted key and the message of the first problem of settings that a user wrote.

    An unknown key comes first, because it often explains the others; `hint(place)` names the known keys.
    """
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return key, f"unknown key {key!r}{hint(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return key, f"{key}: {message}{got}"


def folder_hash(folder: str | Path) -> str:
    """Content hash (16 hex digits) of an adapter folder; a path alone can go stale after retraining. Raises
    OSError when there is no such folder.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + read_regular(file))
    return digest.hexdigest()
