"""What an import does not read is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.proactor.commands.calls import call
from tests.proactor.transcripts.exports import BOOK, chat, conversation, put, says


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (conversation(tools=[BOOK], topic="shop"), "topic, dialogue.mood"),
        (conversation(tools="all of them"), "tools, dialogue.mood"),
        ({"id": "k", "speaker": "user", "text": "hi", "stamp": {"at": 3}}, "stamp"),
        (
            chat("k", {**says("user", "hi"), "name": "Zoe"}, says("assistant", "yes"), functions=[]),
            "functions, messages.name",
        ),
        (
            {"id": "k", "turns": [{"speaker": "user", "text": "hi", "at": 1}], "x": 1, "domain": "d"},
            "x, turns.at",
        ),
    ],
)
def test_keys_that_are_not_read_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any], told: str
) -> None:
    file = put(tmp_path / "x.json", json.dumps([record]))
    call("import", file, "--dry-run", "--option", "one_speaker=keep")
    assert f"not read: {told}\n" in capsys.readouterr().out
