"""Bytes of an export as text, whatever wrote them; what is not plain UTF-8 is counted.

A byte order mark decides. Without one, a text full of zero bytes is UTF-16. Else each line is UTF-8, or,
where it is not, Windows' Latin-1 (cp1252): exports of several systems are pasted together.
"""

from __future__ import annotations

import codecs
from collections import Counter
from pathlib import Path

from proactor.files import SourceError

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig", "files_with_bom"),
    (codecs.BOM_UTF32_LE, "utf-32", "files_utf32"),
    (codecs.BOM_UTF32_BE, "utf-32", "files_utf32"),
    (codecs.BOM_UTF16_LE, "utf-16", "files_utf16"),
    (codecs.BOM_UTF16_BE, "utf-16", "files_utf16"),
)
_LOOKED_AT = 4096
"""Bytes in which zeros are counted."""


def decode(data: bytes, file: Path, encoding: str | None, counters: Counter[str]) -> tuple[str, str]:
    """(text, name of the encoding) of a file's bytes; ``encoding``: as the user named it.

    Counters: `files_with_bom`, `files_utf16`, `files_utf32`, and `lines_not_utf8` for lines read as cp1252.
    Raises SourceError, naming the line, for bytes that the encoding named by the user, or by the mark, lacks.
    """
    if encoding is not None:
        return _strict(data, file, encoding), encoding
    for mark, name, counter in _MARKS:
        if data.startswith(mark):
            counters[counter] += 1
            return _strict(data, file, name), name
    if (order := _unmarked_utf16(data[:_LOOKED_AT])) is not None:
        counters["files_utf16"] += 1
        return _strict(data, file, order), order
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    lines = [_line(line, counters) for line in data.split(b"\n")]
    return "\n".join(lines), "utf-8, in part cp1252"


def check_encoding(name: str) -> str:
    """``name``. Raises ValueError where there is no such encoding of text."""
    try:
        "".encode(name)
    except LookupError:
        raise ValueError(f"{name!r} is no encoding of text; e.g. utf-8, cp1252, utf-16, shift_jis") from None
    return name


def _strict(data: bytes, file: Path, name: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(name, "ignore").count("\n") + 1
        raise SourceError(
            f"{file}:{line}: not {name} (byte 0x{data[error.start]:02x}); --encoding NAME names another"
        ) from None


def _unmarked_utf16(head: bytes) -> str | None:
    """The byte order of a text of which half of the bytes are zero, as in UTF-16 of plain letters."""
    if len(head) < 2 or head.count(0) * 4 < len(head):
        return None
    return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"


def _line(line: bytes, counters: Counter[str]) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        counters["lines_not_utf8"] += 1
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError:  # five bytes that it does not have
        return line.decode("latin-1")
