"""Exports as other systems write them, through ``proactor import`` and the reader of `annotate`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from proactor.sources import Corpus, load
from proactor.yaml_values import read_yaml
from tests.proactor.commands.calls import call, refusal

CSV = "chat_id,role,body\nc1,bot,Hello\nc1,caller,hi\nc2,caller,book it\nc2,bot,done\n"
NAMES = ("--columns", "conversation=chat_id,speaker=role,text=body", "--speakers", "user=caller")


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


WANTED = {
    "c1": [("agent", "Hello"), ("user", "hi")],
    "c2": [("user", "book it"), ("agent", "done")],
}

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


# -- encodings ---


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


# -- what comes twice ---


def test_duplicates_are_counted_under_any_id(tmp_path: Path) -> None:
    turns = [says("user", "hi"), says("assistant", "yes")]
    records = [
        chat("a", *turns),
        chat("a", *turns),
        chat("b", *turns),
        chat("c", *turns[:1], says("assistant", "no")),
    ]
    file = put(tmp_path / "x.jsonl", lines(*records))
    corpus, report = imported(tmp_path, file)
    assert sorted(words(corpus)) == ["a", "c"] and report["counters"]["duplicates"] == 2
    assert "'b' is the same as 'a'" in report["left_out"][1]
    corpus, _ = imported(tmp_path, file, "--option", "duplicates=keep", "--same-id", "rename", "--force")
    assert sorted(words(corpus)) == ["a", "a-2", "b", "c"]


def test_a_conversation_split_over_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = CSV.splitlines(keepends=True)
    one = put(tmp_path / "1.csv", head + "".join(rows[:3]))
    two = put(tmp_path / "2.csv", head + rows[3])
    said = refusal(capsys, "import", one, two, *NAMES, "--dry-run")
    assert "2.csv:2: conversation 'c2' appears twice (first in " in said and "--same-id join" in said
    corpus, report = imported(tmp_path, one, two, *NAMES, "--same-id", "join")
    assert words(corpus) == WANTED and report["counters"]["conversations_joined"] == 1


@pytest.mark.parametrize("same_id", ["join", "rename"])
def test_a_part_that_comes_again_is_a_duplicate(tmp_path: Path, same_id: str) -> None:
    first = chat("a", says("user", "hi"), says("assistant", "yes"))
    second = chat("a", says("user", "and"), says("assistant", "no"))
    file = put(tmp_path / "x.jsonl", lines(first, second, first, second))
    corpus, report = imported(tmp_path, file, "--same-id", same_id)
    one, two = [("user", "hi"), ("agent", "yes")], [("user", "and"), ("agent", "no")]
    assert words(corpus) == ({"a": one + two} if same_id == "join" else {"a": one, "a-2": two})
    assert report["counters"]["duplicates"] == 2
    assert "x.jsonl:4: 'a' is the same as" in report["left_out"][1] and "x.jsonl:2" in report["left_out"][1]


# -- what cannot be read ---


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
