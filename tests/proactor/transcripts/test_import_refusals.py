"""Exports that cannot be read: one line with the place, or dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proactor.commands.calls import refusal
from tests.proactor.transcripts.exports import CSV, NAMES, chat, imported, lines, put, says, words


@pytest.mark.parametrize(
    ("name", "text", "arguments", "fault"),
    [
        ("x.jsonl", '{"id": "a", "turns": [}\n', (), "x.jsonl:1: not JSON"),
        ("x.jsonl", "[1]\n", (), "x.jsonl:1: not an object"),
        ("x.jsonl", "", (), "no conversations in it"),
        ("x.json", "{", (), "x.json:1: not JSON"),
        ("x.json", "3", (), "x.json: neither an object nor a list"),
        ("x.json", '{"a": [{"x": 1}], "b": [{"y": 1}]}', (), r"several lists of objects (a, b)"),
        ("x.json", "{}", ("--columns", "conversations=data"), "nothing at conversations=data"),
        ("x.json", "[3]", (), "item 1 is not an object"),
        (
            "x.csv",
            CSV,
            ("--columns", "text=words"),
            "x.csv:1: no column 'words' for the text; found chat_id, role, body",
        ),
        ("x.csv", "id,who,text\na,b,c\n", (), "no column for the speaker (speaker, role"),
        ("x.csv", "id,who,text\na,b,c\n", (), "; found id, who, text; --columns speaker=NAME"),
        (
            "x.csv",
            CSV + "c3;bot;x\n",
            NAMES,
            "x.csv:6: 1 columns, the header has 3; by ';' the line has as many",
        ),
        ("x.csv", CSV + ",bot,x\n", NAMES, "x.csv:6: no id in column 'chat_id'"),
        ("x.csv", CSV + 'c3,bot,"x\n', NAMES, "not CSV"),
        ("x.csv", CSV, ("--speakers", "user=caller,agent=caller"), "speaker 'caller' is named twice"),
        ("x.csv", CSV, ("--speakers", "boss=caller"), "'boss' is not one of user, agent, drop"),
        ("x.csv", CSV, ("--columns", "text"), "OURS=THEIRS is wanted"),
        ("x.csv", CSV, ("--form", "poem"), "form: Input should be"),
        ("x.csv", CSV, ("--option", "colour=red", *NAMES), "--option colour: no key of the mapping"),
        ("x.csv", CSV.replace("caller", "bot"), (), "none has user turns; --speakers user=NAME"),
        (
            "x.jsonl",
            lines(chat("a", says("user", "hi"))),
            ("--columns", "order=at"),
            "columns: order: not read in the form chat, which has names of its own; --form conversations",
        ),
        ("x.jsonl", lines({"id": "a", "messages": 3}), (), "x.jsonl:1: `messages` is not a list"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    arguments: tuple[str, ...],
    fault: str,
) -> None:
    said = refusal(capsys, "import", put(tmp_path / name, text), *arguments, "--out", tmp_path / "out")
    assert fault in said and not (tmp_path / "out").exists()


def test_files_of_two_forms_are_not_one_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "a.csv", CSV)
    put(tmp_path / "b.jsonl", lines(chat("a", says("user", "x"))))
    assert "files of several forms" in refusal(capsys, "import", tmp_path, "--dry-run")


def test_what_is_broken_can_be_dropped_and_is_counted(tmp_path: Path) -> None:
    good = chat("a", says("user", "hi"), says("assistant", " "), says("assistant", "yes"))
    text = lines(good) + '{"id": \n\n' + lines(chat("b", says("user", "hi"), {"content": "x"}))
    corpus, report = imported(tmp_path, put(tmp_path / "x.jsonl", text), "--broken", "drop")
    assert sorted(words(corpus)) == ["a"]
    assert report["counters"] == {
        "broken_conversations": 1,
        "broken_lines": 1,
        "empty_lines": 1,
        "empty_turns": 1,
    }
    assert [line.split(": ")[0].rsplit("/")[-1] for line in report["left_out"]] == ["x.jsonl:2", "x.jsonl:4"]


def test_a_catalog_of_ones_own_is_kept_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "tools.json", json.dumps([{"name": "find", "description": "Find"}]))
    record = chat("a", says("user", "hi"), says("assistant", "x", ("fly", {}), ("find", {})))
    file, tools = put(tmp_path / "x.jsonl", lines(record)), ("--catalog", tmp_path / "tools.json")
    assert "x.jsonl:1: tool 'fly' is not in" in refusal(
        capsys, "import", file, *tools, "--out", tmp_path / "out"
    )
    corpus, report = imported(tmp_path, file, *tools, "--option", "unknown_tools=drop")
    assert [r.name for r in corpus.dialogues[0].references] == ["find"] and report["counters"][
        "unknown_tools"
    ] == 1
