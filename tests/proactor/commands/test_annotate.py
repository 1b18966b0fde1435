"""``proactor annotate``."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from proactor.catalogs import write_catalog
from proactor.commands.annotate import annotate
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.engine import ProactorError
from proactor.sources import load
from tests.proactor.annotation.scripted import BOOKING, TOOLS
from tests.proactor.fake_endpoint import FakeEndpoint, ok


def command(*arguments: Any) -> str:
    app = typer.Typer()
    app.command()(annotate)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_corpus_is_annotated_and_can_be_read_back(tmp_path: Path) -> None:
    out = command("synthetic", "--limit", 5, "--out", tmp_path / "out")
    assert "5 dialogues" in out and "known windows: both the same" in out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["known"]["exact"] == 1
    assert len(load("jsonl", tmp_path / "out").dialogues) == 5


def test_transcripts_of_ones_own_with_an_endpoint(tmp_path: Path) -> None:
    line = {"id": "x", "turns": [{"speaker": t.speaker, "text": t.text} for t in BOOKING.turns]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    write_catalog(TOOLS, tmp_path / "tools.json")
    with FakeEndpoint(otherwise=ok('{"actions":[]}')) as fake:
        options = (
            "--catalog",
            tmp_path / "tools.json",
            "--oracle",
            "endpoint",
            "--model",
            "m",
            "--base-url",
            fake.url,
            "--out",
            tmp_path / "out",
        )
        assert "5 questions: about" in command(
            tmp_path / "mine.jsonl", *options, "--dry-run", "--price-in", 1
        )
        assert not fake.requests and not (tmp_path / "out").exists()
        command(tmp_path / "mine.jsonl", *options)
        assert len(fake.requests) == 10, "a single dialogue is read twice for G3"


def test_what_the_reader_drops_is_reported_and_its_options_can_be_given(tmp_path: Path) -> None:
    good = [{"speaker": "user", "text": "book monday"}, {"speaker": "agent", "text": "ok"}]
    lines = [
        {"id": "alone", "turns": good[:1]},
        {"id": "gap", "turns": [*good, {"speaker": "user", "text": " "}]},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_catalog(TOOLS, tmp_path / "tools.json")
    with FakeEndpoint(otherwise=ok('{"actions":[]}')) as fake:
        options = (
            "--catalog",
            tmp_path / "tools.json",
            "--oracle",
            "endpoint",
            "--model",
            "m",
            "--base-url",
            fake.url,
        )
        with pytest.raises(ProactorError, match=r"mine.jsonl:2: .*empty=drop"):
            command(tmp_path / "mine.jsonl", *options, "--out", tmp_path / "out")
        out = command(tmp_path / "mine.jsonl", *options, "--out", tmp_path / "out", "--option", "empty=drop")
    assert "reader: no_agent_turns" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["source"] == {"empty_turns": 1, "no_agent_turns": 1}


def test_transcripts_hold_no_log(tmp_path: Path) -> None:
    line = {"id": "x", "turns": [{"speaker": t.speaker, "text": t.text} for t in BOOKING.turns]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    write_catalog(TOOLS, tmp_path / "tools.json")
    with pytest.raises(
        ProactorError, match=r"no log of actions to read.*--oracle engine.*--oracle endpoint"
    ) as end:
        command(tmp_path / "mine.jsonl", "--catalog", tmp_path / "tools.json", "--out", tmp_path / "out")
    assert "proactor catalog" not in str(end.value)
    with pytest.raises(ProactorError, match="proactor catalog DEFINITIONS"):
        command(tmp_path / "mine.jsonl", "--out", tmp_path / "out")


def test_a_server_that_is_not_there_is_told_in_its_own_words(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    options = ("--oracle", "endpoint", "--model", "m", "--base-url", url, "--out", tmp_path / "out")
    with pytest.raises(ProactorError, match=r"none of 2 dialogues was answered \(m: .*onnect") as end:
        command("synthetic", "--limit", 2, *options)
    assert "\n" not in str(end.value) and not (tmp_path / "out" / "windows.jsonl").exists()


def test_what_was_left_out_or_masked_is_named_with_its_reason(tmp_path: Path) -> None:
    turns = [("user", "refund my order"), ("agent", "On it."), ("user", "thanks"), ("agent", "Done.")]
    listed = [{"speaker": speaker, "text": text} for speaker, text in turns]
    log = [{"name": "refund", "params": {"reason": "double charge"}, "observed_trigger": 1}]
    lines = [
        {"id": "vague", "turns": listed, "references": log},
        {"id": "alone", "turns": listed[:1]},
        {"id": "fine", "turns": listed, "references": [{"name": "note", "observed_trigger": 1}]},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tools = (Tool(name="refund", parameters=(Parameter(name="reason"),)), Tool(name="note"))
    write_catalog(Catalog(tools=tools), tmp_path / "catalog.json")
    said = " ".join(command(tmp_path / "mine.jsonl", "--out", tmp_path / "out").split())
    assert "left out: alone: reader, no agent turns" in said
    assert "masked: vague refund: reason=double charge: never said literally" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [d["id"] for d in report["left_out"]] == ["alone"]
    assert [(w["dialogue"], w["tool"]) for w in report["masked"]] == [("vague", "refund")]


def test_a_chat_export_with_mistakes_loses_nothing_unnamed(tmp_path: Path) -> None:
    def chat(*calls: dict[str, Any]) -> dict[str, Any]:
        made = [{"type": "function", "function": call} for call in calls]
        say = {"role": "assistant", "content": "Done.", "tool_calls": made}
        return {"messages": [{"role": "user", "content": "order 7, please a refund"}, say]}

    good = {"name": "refund", "arguments": '{"order": 7.0}'}
    lines = [
        chat(good, {"name": "refund", "arguments": '{"order": '}),
        chat(good, {"name": "fly", "arguments": ""}),
        chat({"name": "refund", "arguments": '{"order": "seventy"}'}),
        chat(good, good),
        {**chat({"name": "refund", "arguments": "{}"}), "id": "named"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tool = Tool(name="refund", parameters=(Parameter(name="order", type="integer", required=False),))
    write_catalog(Catalog(tools=(tool,)), tmp_path / "tools.json")
    options = ("--catalog", tmp_path / "tools.json", "--out", tmp_path / "out")
    with pytest.raises(ProactorError, match=r"mine.jsonl:2: tool 'fly' is not in .*unknown_tools=drop\)$"):
        command(tmp_path / "mine.jsonl", *options)
    said = " ".join(command(tmp_path / "mine.jsonl", *options, "--option", "unknown_tools=drop").split())
    place = re.escape(str(tmp_path / "mine.jsonl"))
    for words in (
        rf"not read: \w+ \({place}:1\) message 2: refund: its arguments are no JSON object",
        rf"not read: \w+ \({place}:2\) fly: the tool is not in",
        rf"masked: \w+ \({place}:3\) refund: order=seventy: never said",
        rf"repeated: \w+ \({place}:4\) refund at turn 1: in the window of the call before it",
        r"reader: unknown_tools 1 actions",
        r"Then: proactor train CONFIG, with data: {source: jsonl, path: ",
    ):
        assert re.search(words, said), words
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["windows"]["null"] == 1, "7.0 is the 7 that was said"
    assert len(report["places"]) == 4 and "named" not in report["places"]


def test_nothing_kept_is_no_success(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(annotate)
    line = {"id": "x", "turns": [{"speaker": t.speaker, "text": t.text} for t in BOOKING.turns]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    write_catalog(TOOLS, tmp_path / "tools.json")
    with FakeEndpoint(otherwise=ok("no JSON at all")) as fake:
        options = ["--catalog", tmp_path / "tools.json", "--oracle", "endpoint", "--model", "m"]
        options += ["--base-url", fake.url, "--out", tmp_path / "out"]
        result = CliRunner().invoke(app, [str(a) for a in (tmp_path / "mine.jsonl", *options)])
    assert result.exit_code == 1 and "no dialogue was kept" in result.output
    assert "left out: x: G1, 0 of 5 entries valid (5 not_json)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.jsonl",), "neither a corpus"),
        (("sgd",), "needs a path"),
        (("synthetic", "--oracle", "engine"), "needs --model"),
        (("synthetic", "--oracle", "crystal", "--model", "x"), "log, engine, endpoint"),
        (("synthetic", "--base-url", "http://x"), "does not go with --oracle log"),
        (("synthetic", "--model", "x"), "--oracle log asks no model"),
        (("synthetic", "--constrained"), "--constrained does not go with --oracle log"),
        (("synthetic", "--oracle", "endpoint", "--model", "m", "--brief"), "--brief does not go"),
        (("synthetic", "--limit", "2", "--catalog", "nowhere.json"), "nowhere.json"),
        (("synthetic", "--option", "sise=3"), "option sise"),
        (("synthetic", "--option", "size"), "KEY=VALUE is wanted"),
        (("synthetic", "--limit", "2", "--oracle", "endpoint", "--model", "m"), "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ProactorError, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)


def test_a_finished_folder_is_kept(tmp_path: Path) -> None:
    command("synthetic", "--limit", 2, "--out", tmp_path)
    with pytest.raises(ProactorError, match="finished already"):
        command("synthetic", "--limit", 2, "--out", tmp_path)
    command("synthetic", "--limit", 3, "--out", tmp_path, "--fresh")


def test_a_module_of_tools_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    line = {"id": "x", "turns": [{"speaker": t.speaker, "text": t.text} for t in BOOKING.turns]}
    line["references"] = []
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "tools.py").write_text("def book(day: str = '', time: str = ''): ...\n")
    options = (tmp_path / "mine.jsonl", "--catalog", tmp_path / "tools.py", "--dry-run", "--oracle", "engine")
    options += ("--model", tmp_path)
    with pytest.raises(ProactorError, match="--trust-code allows it"):
        command(*options)
    with pytest.raises(
        ProactorError, match=r"config\.json"
    ):  # the tools were read: what is missing is the model
        command(*options, "--trust-code")


def test_an_option_that_is_no_readers(tmp_path: Path) -> None:
    with pytest.raises(ProactorError, match="option limit: no option of a reader"):
        command("synthetic", "--option", "limit=5", "--out", tmp_path)
