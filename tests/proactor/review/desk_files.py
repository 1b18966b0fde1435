"""Windows under review, as files: dialogues with keys of other programs, odd spacing, markup in the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proactor.catalogs import write_catalog
from proactor.dialogue.catalog import Catalog, Parameter, Tool

CATALOG = Catalog(
    tools=(
        Tool(
            name="book",
            confirm=True,
            parameters=(
                Parameter(name="day"),
                Parameter(name="size", type="enum", values=("small", "large"), required=False),
            ),
        ),
        Tool(name="find", effect="read"),
    )
)
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def turns(*texts: str) -> list[dict[str, Any]]:
    return [
        {"index": i, "speaker": "user" if i % 2 else "agent", "text": text} for i, text in enumerate(texts, 1)
    ]


def window(id: str = "a1", name: str = "book", **fields: Any) -> dict[str, Any]:
    made = {
        "id": id,
        "name": name,
        "params": {"day": "Monday"},
        "coverage": [1, 5],
        "ready": [3, 5],
        "observed_trigger": 5,
        "value_turns": {"day": 1},
        "values_seen": 1,
        "variants": {},
        "null_reason": "",
    }
    return made | fields


TALK = turns(
    "A table on Monday, please.",
    "Shall I?",
    "Yes.",
    "A moment.",
    "No, Tuesday! Sure.",
    "Done.",
    "Bye.",
    "Bye.",
)


def dialogue(id: str = "one", *references: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": id,
        "turns": TALK,
        "references": list(references) or [window()],
        "withdrawn": [],
        "tools": [],
        "domain": "tables",
        "source": "jsonl",
        **fields,
    }


ODD = (
    '{"note": {"kept": 1.50}, "id": "odd",  "turns": '
    + json.dumps([{**turn, "mood": "calm"} for turn in TALK])
    + ', "references": ['
    + json.dumps({"score": 0.5, **window("w"), "tags": ["x"]})
    + '], "last": null}'
)
"""A line with keys that a dialogue does not have, and spaces that `annotate` does not write."""


def put(folder: Path, *records: dict[str, Any] | str, name: str = "windows.jsonl") -> Path:
    """A file of windows with its tools beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r, separators=(",", ":")) for r in records]
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_catalog(CATALOG, folder / "catalog.json")
    return folder / name


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()
