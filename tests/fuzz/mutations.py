"""Spoiled copies of bytes, texts and JSON values. Every choice is the given generator's."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**40, -(2**63), 2**64, 10**400, -(10**400),
    0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), "", " ", "0", "nan", "x", "null", "/", "..", "~",
    "a\0b", "\ud800", "two\nlines\x1b[31m", "\u202eright", "ﬁ", "١٢", "🙂" * 3, "x" * 5000, "{{ 1 }}",
    "${HOME}", "1e999", "2026-02-30", [], {}, [[]], [None], [0], ["x"], [[1, 2], [3]], {"": ""},
    {"x": None}, {"type": []}, ["x"] * 300,
)  # fmt: skip
"""Values that a field may hold in place of its own."""

SNIPPETS = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xe9", b"\xed\xa0\x80", b"\r", b"\n", b"\n\n",
    b"\t", b" ", b"{}", b"[]", b"[", b"{", b"}", b"]", b'"', b"'", b"\\", b"\\u", b"\\ud800", b",", b":",
    b"- ", b"#", b"null", b"1e400", b"-", b"9" * 5000, b"0x" + b"f" * 600, b"[" * 3000, b'{"a":' * 3000,
    b"\x1b[31m", b"&a [*a]", b"*a", b"!!int x", b"!!python/object:os.system x", b"<think>", b"</think>",
    b"<graph>", b"</graph>", b"```json\n",
)  # fmt: skip
"""Bytes that mean something to some reader."""

ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7")


def spoil_bytes(draw: Random, data: bytes) -> bytes:
    """A copy with one to four changes: bits, cuts, swaps, repeats, insertions, another encoding."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        kind = draw.randrange(9)
        if kind == 0 and data:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[end:] + data[at:end] + data[:at]
        elif kind == 4:
            data = data[:end] + data[at : min(end, at + 2000)] * draw.choice((1, 1, 20)) + data[end:]
        elif kind in (5, 6):
            data = data[:at] + draw.choice(SNIPPETS) + data[at if kind == 5 else end :]
        elif kind == 7:
            data = data.decode("utf-8", "replace").encode(draw.choice(ENCODINGS), "replace")
        else:
            data = data[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(40))) + data[at:]
    return data


def spoil_text(draw: Random, text: str) -> str:
    """`spoil_bytes` of a text, read back whatever comes."""
    spoiled = spoil_bytes(draw, text.encode("utf-8", "surrogatepass"))
    return spoiled.decode("utf-8", draw.choice(("replace", "surrogateescape", "ignore")))


def spoil_tree(draw: Random, value: Any) -> Any:
    """A copy of a JSON value with one to three parts left out, renamed, doubled, nested or replaced."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder = [value]
        _spoil(draw, *draw.choice(list(_places(holder, 0))))
        (value,) = holder or [None]
    return value


def _places(holder: Any, key: Any) -> list[tuple[Any, Any]]:
    inner = holder[key]
    keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    return [(holder, key), *(place for k in list(keys)[:200] for place in _places(inner, k))]


def _spoil(draw: Random, holder: Any, key: Any) -> None:
    kind = draw.randrange(8)
    inner = holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "x", "type", "name", "$ref", "\0", "a\nb", key.upper(), key * 2))] = inner
    elif kind == 2:
        holder[key] = [deepcopy(inner) for _ in range(draw.choice((1, 2, 50)))]
    elif kind == 3:
        holder[key] = {draw.choice(("", "x", "type", "properties", "anyOf")): inner}
    elif kind == 4:
        for _ in range(draw.choice((3, 70, 200))):
            inner = [inner] if draw.random() < 0.5 else {"a": inner}
        holder[key] = inner
    elif kind == 5 and isinstance(inner, str):
        holder[key] = spoil_text(draw, inner)
    elif kind == 6 and isinstance(inner, int | float):
        holder[key] = draw.choice((-inner, inner + 1, inner * 2, inner * 2**33, str(inner), [inner]))
    else:
        holder[key] = deepcopy(draw.choice(ODD))


def dump(draw: Random, value: Any) -> bytes:
    """A value as JSON, in one of the ways that programs write it."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
    return text.encode("utf-8", "surrogatepass")


def spoil_json(draw: Random, data: bytes) -> bytes:
    """A copy of a JSON text with its value or its bytes spoiled."""
    return dump(draw, spoil_tree(draw, json.loads(data))) if draw.random() < 0.7 else spoil_bytes(draw, data)


def spoil_lines(draw: Random, data: bytes) -> bytes:
    """A copy of JSON lines with one of them, or the bytes, spoiled."""
    lines = data.splitlines()
    if not lines or draw.random() < 0.2:
        return spoil_bytes(draw, data)
    at = draw.randrange(len(lines))
    try:
        lines[at] = dump(draw, spoil_tree(draw, json.loads(lines[at]))).replace(b"\n", b" ")
    except ValueError:  # a table's line
        lines[at] = spoil_bytes(draw, lines[at])
    return b"\n".join(lines) + draw.choice((b"\n", b""))


def spoil_safetensors(draw: Random, data: bytes) -> bytes:
    """A copy of a safetensors file with its header, its lengths or its bytes spoiled."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = draw.randrange(5)
    if kind == 0:
        return spoil_bytes(draw, data)
    if kind == 1:
        return struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 2**32, 2**63))) + header + rest
    tree = json.loads(header)
    if kind == 2:  # another dtype of the same or another width
        name = draw.choice([name for name in tree if name != "__metadata__"])
        tree[name]["dtype"] = draw.choice(
            "F8_E4M3 F8_E5M2 F8_E8M0 F4 I8 U8 I64 F64 BOOL C64 U16 F16 BF16 X".split()
        )
    else:
        tree = spoil_tree(draw, tree)
    header = dump(draw, tree)
    return struct.pack("<Q", len(header)) + header + rest[: draw.choice((None, None, len(rest) // 2))]


def misplace(draw: Random, file: Path) -> None:
    """Something else in a file's place: nothing, a folder, a pipe, a link to nowhere or to itself."""
    import os

    file.unlink()
    kind = draw.randrange(5)
    if kind == 1:
        file.mkdir()
    elif kind == 2:
        os.mkfifo(file)
    elif kind > 2:
        file.symlink_to(file if kind == 3 else file.with_name("nowhere"))


def spoil_file(draw: Random, file: Path) -> None:
    """Spoil a file by its kind, or misplace it."""
    if draw.random() < 0.05:
        misplace(draw, file)
        return
    data = file.read_bytes()
    spoilers = {".json": spoil_json, ".jsonl": spoil_lines, ".safetensors": spoil_safetensors}
    spoiled = spoilers.get(file.suffix, spoil_bytes)(draw, data)
    file.unlink()  # it may be a link to the one that all cases copy
    file.write_bytes(spoiled)


def link_all(source: Path, target: Path, names: Sequence[str] | None = None) -> None:
    """Put the files of ``source`` into ``target`` as hard links."""
    for file in source.iterdir():
        if file.is_file() and (names is None or file.name in names):
            (target / file.name).hardlink_to(file)
