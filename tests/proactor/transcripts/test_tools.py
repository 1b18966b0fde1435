"""The tools behind an import: as conversations define them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proactor.transcripts.exports import BOOK, conversation, imported, lines, put


@pytest.mark.parametrize("calls", [True, False])
def test_conversations_bring_the_tools_that_they_define(tmp_path: Path, calls: bool) -> None:
    record = conversation(tools=[BOOK, "find", BOOK])
    if not calls:
        del record["dialogue"][1]["tool_calls"]
    corpus, report = imported(tmp_path, put(tmp_path / "x.json", json.dumps([record])))
    book = corpus.catalog["book"]
    assert (book.description, book.effect) == ("Books a table", "read")
    assert [(p.name, p.type, p.values) for p in book.parameters] == [
        ("day", "enum", ("monday", "friday")),
        ("people", "integer", ()),
        ("tags", "string", ()),
    ]
    assert corpus.dialogues[0].tools == ("book", "find")
    assert report["counters"] == {"array_as_text": 1}


def test_transcripts_of_our_form_may_define_tools(tmp_path: Path) -> None:
    record = {"id": "k", "turns": [{"speaker": "user", "text": "hi"}, {"speaker": "bot", "text": "yes"}]}
    corpus, _ = imported(tmp_path, put(tmp_path / "x.jsonl", lines(record | {"tools": [BOOK]})))
    assert corpus.dialogues[0].tools == ("book",) and corpus.catalog["book"].effect == "read"
