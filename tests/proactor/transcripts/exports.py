"""What the tests of `proactor import` share: exports as other systems write them, and an import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proactor.sources import Corpus, load
from tests.proactor.commands.calls import call

CSV = "chat_id,role,body\nc1,bot,Hello\nc1,caller,hi\nc2,caller,book it\nc2,bot,done\n"
NAMES = ("--columns", "conversation=chat_id,speaker=role,text=body", "--speakers", "user=caller")
WANTED = {
    "c1": [("agent", "Hello"), ("user", "hi")],
    "c2": [("user", "book it"), ("agent", "done")],
}
"""What `CSV` says, as `words` gives it."""


def imported(folder: Path, *arguments: Any) -> tuple[Corpus, dict[str, Any]]:
    """The dialogues that an import wrote, and its report."""
    call("import", *arguments, "--out", folder / "out")
    report = json.loads((folder / "out" / "import.json").read_text())
    return load("jsonl", folder / "out"), report


def words(corpus: Corpus) -> dict[str, list[tuple[str, str]]]:
    return {d.id: [(t.speaker, t.text) for t in d.turns] for d in corpus.dialogues}


def put(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def chat(identity: str, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": identity, "messages": list(messages), **more}


def says(role: str, content: str | None, *calls: tuple[str, Any]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls]
    return {"role": role, "content": content, **({"tool_calls": made} if made else {})}


BOOK = {
    "type": "function",
    "x-effect": "read",
    "function": {
        "name": "book",
        "description": "Books a table",
        "parameters": {
            "type": "object",
            "properties": {
                "day": {"type": "string", "enum": ["monday", "friday"]},
                "people": {"type": "integer"},
                "tags": {"type": "array"},
            },
        },
    },
}
"""A tool as a chat API takes it."""


def conversation(**more: Any) -> dict[str, Any]:
    """A conversation of another system, with a call of `BOOK`."""
    log = [
        {"from": "human", "value": "monday", "mood": 3},
        {"from": "bot", "value": "ok", "tool_calls": [{"name": "book", "arguments": {"day": "monday"}}]},
    ]
    return {"conversation_id": "k", "dialogue": log, **more}
