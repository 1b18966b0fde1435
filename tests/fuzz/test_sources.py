"""Corpora and tool files of every format with something wrong in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from proactor.catalogs import FORMATS, read
from proactor.sources import load
from tests.fuzz.harness import fuzz
from tests.fuzz.mutations import dump, spoil_file, spoil_tree
from tests.proactor.catalogs.definitions import API, PLAIN, SERVICE, function
from tests.proactor.sources import test_jsonl, test_multidogo, test_multiwoz, test_proactivebench
from tests.proactor.sources import test_wrong_types as records

Make = Callable[[Path], object]


def _jsonl(folder: Path, examples: Path) -> None:
    for name in ("transcripts.jsonl", "tools.json"):
        (folder / name).write_bytes((examples / name).read_bytes())


def _own(folder: Path) -> None:
    test_jsonl.put(folder, test_jsonl.OWN, test_jsonl.talk("hi", "yes?", "book"))


def _chat(folder: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": '{"day": "Friday"}'}}
    messages = [
        {"role": "user", "content": "Book Friday."},
        {"role": "assistant", "content": "Done.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "{}"},
        {"role": "assistant", "content": [{"type": "text", "text": "Anything else?"}]},
    ]
    (folder / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")


def _table(folder: Path) -> None:
    (folder / "talks.csv").write_text('id,speaker,text\n1,user,"book, please"\n1,agent,yes\n2,user,hi\n')


def _multidogo(folder: Path) -> None:
    test_multidogo.write(
        folder / "media.tsv", test_multidogo.BOTH, "a\t0\tx\thi\tCustomer", "a\t1\tx\tyes\tagent"
    )


def _packed(make: Make, folder: Path) -> None:
    """The same, packed: cut and flipped bytes of a gzip file."""
    make(folder)
    for file in [file for file in folder.iterdir() if file.suffix == ".jsonl"]:
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


CORPORA: list[tuple[str, Make]] = [
    ("sgd", records.sgd),
    ("sgd", partial(_packed, records.sgd)),
    ("sgd", records.sgd_release),
    ("abcd", records.abcd),
    ("abcd", records.abcd_release),
    ("multiwoz", lambda folder: records.write(folder / "val.jsonl", test_multiwoz.compact())),
    ("multiwoz", lambda folder: records.write(folder / "data.json", test_multiwoz.release21())),
    ("multiwoz", records.multiwoz_2_2),
    ("star", records.star),
    ("star", records.star_release),
    ("taskmaster4", records.taskmaster4),
    ("smcalflow", records.smcalflow),
    ("smcalflow", records.smcalflow_release),
    ("proactivebench", lambda folder: test_proactivebench.write(folder, *test_proactivebench.RECORDS)),
    ("multidogo", _multidogo),
    ("jsonl", _own),
    ("jsonl", partial(_packed, _own)),
    ("jsonl", _chat),
    ("jsonl", _table),
]


def test_sources(repo_root: Path) -> None:
    kinds = [*CORPORA, ("jsonl", partial(_jsonl, examples=repo_root / "examples" / "support"))]

    def case(draw: Random, folder: Path) -> object:
        name, make = draw.choice(kinds)
        make(folder)
        spoil_file(draw, draw.choice(sorted(file for file in folder.rglob("*") if file.is_file())))
        return load(name, folder, limit=draw.choice((None, 1)))

    fuzz("sources", case, 300)


SCHEMA: dict[str, Any] = {
    "title": "book",
    "type": "object",
    "required": ["day", "who"],
    "properties": {
        "day": {"type": "string", "format": "date", "description": "which"},
        "who": {"$ref": "#/$defs/who"},
        "how": {"anyOf": [{"type": "integer"}, {"type": "null"}, {"enum": ["a", 1, None]}]},
        "where": {"allOf": [{"$ref": "#/$defs/place"}, {"properties": {"zip": PLAIN}}]},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
        "flag": {"type": ["boolean", "null"], "default": False},
    },
    "$defs": {
        "who": {"type": "object", "properties": {"name": PLAIN, "again": {"$ref": "#/$defs/who"}}},
        "place": {"type": "object", "properties": {"street": PLAIN}, "required": ["street"]},
    },
}
OWN = {
    "tools": [{"name": "a", "effect": "read", "parameters": [{"name": "b", "type": "enum", "values": ["c"]}]}]
}
MCP = {"tools": [{"name": "a", "inputSchema": SCHEMA, "annotations": {"readOnlyHint": True}}]}
TOOLS: list[Any] = [OWN, MCP, SCHEMA, [SCHEMA], {"book": SCHEMA}, [SERVICE], {"ride": API}]
TOOLS += [[function(x=PLAIN, y=SCHEMA)], function(day=PLAIN)]


def test_catalogs() -> None:
    formats = ["auto"] * 8 + [name for name in FORMATS if name != "python"]

    def case(draw: Random, folder: Path) -> object:
        file = folder / "tools.json"
        value = draw.choice(TOOLS)
        file.write_bytes(dump(draw, spoil_tree(draw, value) if draw.random() < 0.5 else value))
        if draw.random() < 0.6:
            spoil_file(draw, file)
        return read(folder if draw.random() < 0.1 else file, draw.choice(formats))  # type: ignore[arg-type]

    fuzz("catalogs", case, 400)
