"""Exports as other systems write them, through ``proactor import`` and the reader of `annotate`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from proactor.sources import load
from proactor.yaml_values import read_yaml
from tests.proactor.commands.calls import call, refusal
from tests.proactor.transcripts.exports import CSV, NAMES, WANTED, chat, imported, lines, put, says, words

# -- forms ---


def test_calls_of_chats_become_references_and_a_proposal_of_tools(tmp_path: Path) -> None:
    definition = {
        "type": "function",
        "function": {"name": "find", "description": "Find a table", "parameters": {"type": "object"}},
    }
    book = ("cancel_booking", {"number": 17, "vip": True, "code": "007", "note": "x"})
    first = chat(
        "a",
        says("user", "cancel 17"),
        says("assistant", None, book),
        says("tool", "{}"),
        says("assistant", "ok"),
    )
    again = ("cancel_booking", {"number": 4, "vip": False, "code": "12"})
    second = chat(
        "b",
        says("user", "hi"),
        says("assistant", "hello"),
        says("user", "4"),
        says("assistant", "ok", again),
    )
    third = chat("c", says("user", "hi"), says("assistant", "hello"), tools=[definition])
    corpus, report = imported(tmp_path, put(tmp_path / "x.jsonl", lines(first, second, third)))
    assert [r.observed_trigger for d in corpus.dialogues for r in d.references] == [1, 3]
    tool = corpus.catalog["cancel_booking"]
    assert (tool.effect, tool.confirm) == ("irreversible", True)
    assert [(p.name, p.type, p.required) for p in tool.parameters] == [
        ("number", "integer", True),
        ("vip", "boolean", True),
        ("code", "string", True),
        ("note", "string", False),
    ]
    assert corpus.catalog["find"].description == "Find a table"
    assert report["counters"]["tool_messages"] == 1


def test_the_columns_of_a_table_are_named_and_the_mapping_works_again(tmp_path: Path) -> None:
    corpus, _ = imported(tmp_path, put(tmp_path / "x.csv", CSV), *NAMES)
    assert words(corpus) == WANTED
    mapping = tmp_path / "out" / "mapping.yaml"
    assert read_yaml(mapping)["columns"]["speaker"] == "role"
    call("import", tmp_path / "x.csv", "--mapping", mapping, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "transcripts.jsonl").read_bytes() == (
        tmp_path / "out" / "transcripts.jsonl"
    ).read_bytes()
    mapping.write_text(mapping.read_text().replace("caller", "bot2"))
    call(
        "import",
        tmp_path / "x.csv",
        "--mapping",
        mapping,
        "--speakers",
        "user=caller",
        "--out",
        tmp_path / "third",
    )
    assert words(load("jsonl", tmp_path / "third")) == WANTED, "an option comes before the file"


def test_columns_are_guessed_in_any_spelling(tmp_path: Path) -> None:
    text = "Conversation Id\tSender\tMessage\n1\tuser\thi\n1\tagent\tyes\n"
    corpus, _ = imported(tmp_path, put(tmp_path / "x.tsv", text))
    assert words(corpus) == {"1": [("user", "hi"), ("agent", "yes")]}


def test_rows_of_a_table_may_call_tools_and_are_put_in_order(tmp_path: Path) -> None:
    text = (
        "id,at,who,text,tool,args\n"
        'a,10,agent,done,book,"{""day"": ""Monday""}"\n'
        "a,9,client,monday,,\n"
        "a,2,client,a table,,\n"
    )
    columns = "speaker=who,order=at,tool=tool,arguments=args"
    corpus, _ = imported(tmp_path, put(tmp_path / "x.csv", text), "--columns", columns)
    (dialogue,) = corpus.dialogues
    assert [t.text for t in dialogue.turns] == ["a table", "monday", "done"]
    (reference,) = dialogue.references
    assert (reference.name, reference.params, reference.observed_trigger) == ("book", {"day": "Monday"}, 2)


def test_turns_go_by_their_times_or_are_refused_by_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "id,at,who,text\na,10:00,agent,late\na,9:58,user,early\nb,2,user,one\nb,,agent,two\n"
    file, columns = put(tmp_path / "x.csv", rows), "speaker=who,order=at"
    said = refusal(capsys, "import", file, "--columns", columns, "--dry-run")
    assert "x.csv:4: conversation 'b', order=at: turn 2 has no value" in said
    corpus, report = imported(tmp_path, file, "--columns", columns, "--broken", "drop")
    assert words(corpus) == {"a": [("user", "early"), ("agent", "late")]}
    assert report["counters"] == {"turns_reordered": 2, "broken_conversations": 1}


def test_any_json_is_read_by_a_mapping_file(tmp_path: Path) -> None:
    events = [
        {"author": {"name": "Zoe"}, "parts": ["hi"]},
        {"author": {"name": "Max"}, "parts": ["hello"]},
        {"author": {"name": "queue"}, "parts": ["joined"]},
        {"parts": None, "calls": [{"name": "look_up", "arguments": {"who": "Zoe"}}]},
    ]
    export = {"meta": 3, "data": {"chats": [{"ref": 7, "log": events, "topic": "shop"}]}, "other": [{"x": 1}]}
    put(tmp_path / "x.json", json.dumps(export))
    mapping = (
        "form: conversations\n"
        "columns: {conversations: data.chats, conversation: ref, turns: log, speaker: author.name,\n"
        "          text: parts.0, domain: topic, calls: calls}\n"
        'speakers: {user: [zoe], agent: ["*"], drop: [queue]}\n'
    )
    corpus, report = imported(tmp_path, tmp_path / "x.json", "--mapping", put(tmp_path / "m.yaml", mapping))
    assert words(corpus) == {"7": [("user", "hi"), ("agent", "hello")]}
    (dialogue,) = corpus.dialogues
    assert dialogue.domain == "shop" and dialogue.references[0].observed_trigger == 1
    assert report["counters"]["dropped_speakers"] == 1


@pytest.mark.parametrize(
    "export",
    [
        [{"id": "k", "conversations": [{"from": "human", "value": "hi"}, {"from": "bot", "value": "yes"}]}],
        {"k": {"log": [{"author": "user", "message": "hi"}, {"author": "agent", "message": "yes"}]}},
        {"conversations": [{"chatId": "k", "messages": [says("user", "hi"), says("assistant", "yes")]}]},
        [
            {"thread_id": "k", "sender": "user", "body": "hi"},
            {"thread_id": "k", "sender": "bot", "body": "yes"},
        ],
    ],
)
def test_json_of_common_forms_needs_no_mapping(tmp_path: Path, export: Any) -> None:
    corpus, _ = imported(tmp_path, put(tmp_path / "x.json", json.dumps(export, indent=1)))
    assert words(corpus) == {"k": [("user", "hi"), ("agent", "yes")]}


def test_a_file_of_one_conversation_goes_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        turns = [{"role": "user", "text": name}, {"role": "agent", "text": "yes"}]
        (tmp_path / "in" / f"{name}.json.gz").write_bytes(
            gzip.compress(json.dumps({"events": turns}).encode())
        )
    (tmp_path / "in" / "readme.md").write_text("no transcript")
    corpus, report = imported(tmp_path, tmp_path / "in")
    assert sorted(words(corpus)) == ["a", "b"] and report["counters"] == {"files_ignored": 1}


@pytest.mark.parametrize(
    ("file", "form", "dialogues"),
    [
        ("abcd/abcd_dev.jsonl", "abcd", 30),
        ("abcd/raw_abcd_sample.json", "abcd", 3),
        ("star/raw_example_1.json", "star", 1),
        ("sgd/raw_example_train_dialogues_001.json.gz", "sgd", 128),
    ],
)
def test_public_corpora_are_known_by_their_keys(
    data_dir: Path, tmp_path: Path, file: str, form: str, dialogues: int
) -> None:
    corpus, _ = imported(tmp_path, data_dir / file)
    assert len(corpus) == dialogues and read_yaml(tmp_path / "out" / "mapping.yaml") == {"form": form}
    own = load(form, data_dir / file)
    assert {d.id: d.references for d in corpus.dialogues} == {d.id: d.references for d in own.dialogues}


def test_annotate_reads_what_import_wrote(tmp_path: Path, repo_root: Path) -> None:
    source = repo_root / "examples" / "support" / "transcripts.jsonl"
    corpus, _ = imported(tmp_path, source)
    tools = repo_root / "examples" / "support" / "tools.json"
    assert corpus.dialogues == load("jsonl", source, catalog=str(tools)).dialogues
    call("annotate", tmp_path / "out", "--out", tmp_path / "windows")
    assert len(load("jsonl", tmp_path / "windows")) == 20


# -- the dry run ---


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(
        tmp_path / "x.csv", CSV.replace("body", "body,stamp").replace("\nc", ",1\nc").replace(",1\n", "\n", 1)
    )
    put(
        tmp_path / "x.csv",
        "chat_id,role,body,stamp\nc1,bot,Hello,1\nc1,caller,hi,2\nc1,bot,bye,3\nc1,bot,!,4\n",
    )
    call("import", tmp_path / "x.csv", "--speakers", "user=caller", "--dry-run", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    for told in (
        "guessed: --columns changes it",
        "not read: stamp",
        "caller",
        "Nothing was written",
        "user: [",
    ):
        assert told.split(":")[0] in said
    assert [line for line in said.splitlines() if line.startswith("  ") and "agent" in line] == [
        "  agent: Hello",
        "  agent: bye",
    ]
    assert not (tmp_path / "out").exists()
    text = said[said.index("form: rows\n") : said.index("Nothing was written")]
    mapping = put(tmp_path / "m.yaml", text)
    assert len(imported(tmp_path, tmp_path / "x.csv", "--mapping", mapping)[0]) == 1


def test_a_dry_run_shows_an_unknown_speaker_before_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path / "x.csv", CSV.replace("bot,done", "Anna,done"))
    with pytest.raises(SystemExit):
        call("import", file, "--dry-run", "--speakers", "user=caller")
    shown = capsys.readouterr()
    assert "? (--speakers)" in shown.out and "x.csv:4: speaker 'Anna' is not known" in shown.err


def test_an_import_with_edits_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(tmp_path / "x.csv", CSV)
    imported(tmp_path, file, *NAMES)
    said = refusal(capsys, "import", file, *NAMES, "--out", tmp_path / "out")
    assert "transcripts.jsonl: exists already" in said
    imported(tmp_path, file, *NAMES, "--force")


@pytest.mark.parametrize("name", ["windows.jsonl", "windows.jsonl.gz", "windows.jsonl.partial"])
def test_windows_would_be_read_instead_of_an_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = put(tmp_path / "x.csv", CSV)
    (tmp_path / "out").mkdir()
    put(tmp_path / "out" / name, "kept")
    said = refusal(capsys, "import", file, *NAMES, "--out", tmp_path / "out", "--force")
    assert f"{name}: windows of `proactor annotate`" in said and "--out" in said
    assert [f.name for f in (tmp_path / "out").iterdir()] == [name]


def test_tools_of_an_earlier_import_do_not_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_tools = chat("a", says("user", "hi"), says("assistant", "x", ("find", {})))
    imported(tmp_path, put(tmp_path / "x.jsonl", lines(with_tools)))
    assert (tmp_path / "out" / "catalog.json").exists()
    corpus, _ = imported(tmp_path, put(tmp_path / "x.csv", CSV), *NAMES, "--force")
    assert len(corpus.catalog) == 0 and not (tmp_path / "out" / "catalog.json").exists()
    assert "catalog.json of an earlier import is removed" in capsys.readouterr().out


def test_a_conversation_knows_its_subject_in_any_form(tmp_path: Path) -> None:
    record = chat("k", says("user", "hi"), says("assistant", "yes"), topic="shop")
    file = put(tmp_path / "x.jsonl", lines(record))
    assert imported(tmp_path, file, "--columns", "domain=topic")[0].dialogues[0].domain == "shop"
