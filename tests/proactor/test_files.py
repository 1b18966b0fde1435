"""Text and JSON of files: what is not UTF-8 is refused by its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from proactor.files import EncodingError, parse_json, read_json, read_text, read_validated

READERS: list[Callable[[Path], Any]] = [
    read_text,
    read_json,
    lambda file: read_validated(file, TypeAdapter(list[str])),
]


@pytest.mark.parametrize("read", READERS, ids=["text", "JSON", "validated"])
def test_what_is_not_utf8_is_refused_by_its_line(read: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_bytes("\ufeff".encode() + b'["Zo\xc3\xab",\n "M\xfcller"]')
    with pytest.raises(EncodingError) as caught:
        read(file)
    assert str(caught.value) == f"{file}:2: not UTF-8 (byte 0xfc); write it in UTF-8"


@pytest.mark.parametrize("read", READERS[1:], ids=["JSON", "validated"])
def test_a_byte_order_mark_is_left_out(read: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_bytes('\ufeff["Zoë"]'.encode())
    assert read(file) == ["Zoë"]


def test_a_later_line_has_its_own_number() -> None:
    with pytest.raises(EncodingError, match=r"^log:7: not UTF-8 \(byte 0x80\)"):
        parse_json(b'"\x80"', Path("log"), 7)
