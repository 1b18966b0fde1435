"""Encodings of exports: found and counted, or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.proactor.commands.calls import refusal
from tests.proactor.transcripts.exports import imported, put, words


@pytest.mark.parametrize(
    ("encoded", "counters"),
    [
        (lambda t: t.encode(), {}),
        (lambda t: b"\xef\xbb\xbf" + t.encode(), {"files_with_bom": 1}),
        (lambda t: t.encode("utf-16"), {"files_utf16": 1}),
        (lambda t: t.encode("utf-16-le"), {"files_utf16": 1}),
        (lambda t: t.encode("utf-16-be"), {"files_utf16": 1}),
        (lambda t: t.encode("utf-32"), {"files_utf32": 1}),
        (lambda t: t.encode("cp1252"), {"lines_not_utf8": 2}),
        (
            lambda t: "\n".join(t.split("\n")[:3]).encode() + b"\n" + t.split("\n")[3].encode("latin-1"),
            {"lines_not_utf8": 1},
        ),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_encodings_are_found_and_counted(
    tmp_path: Path, encoded: Any, counters: dict[str, int], form: str
) -> None:
    rows = [("a", "user", "Grüße"), ("a", "bot", "ja"), ("a", "user", "für 5 £")]
    text = "\n".join(["id,role,text", *map(",".join, rows)])
    if form == "jsonl":
        turns = [json.dumps({"id": i, "role": r, "text": t}, ensure_ascii=False) for i, r, t in rows]
        text = "\n".join([turns[0].replace("Grüße", "-"), *turns])
    corpus, report = imported(tmp_path, put(tmp_path / f"x.{form}", encoded(text)))
    assert words(corpus)["a"][-3:] == [("user", "Grüße"), ("agent", "ja"), ("user", "für 5 £")]
    assert report["counters"] == counters


def test_an_encoding_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(tmp_path / "x.csv", "id,role,text\na,user,予約\na,bot,はい\n".encode("shift_jis"))
    corpus, report = imported(tmp_path, file, "--encoding", "shift_jis")
    assert words(corpus)["a"][0] == ("user", "予約") and not report["counters"]
    said = refusal(capsys, "import", file, "--encoding", "utf-8", "--dry-run")
    assert "x.csv:2: not utf-8 (byte 0x97); --encoding NAME names another" in said
    assert "'utf-99' is no encoding" in refusal(capsys, "import", file, "--encoding", "utf-99", "--dry-run")
