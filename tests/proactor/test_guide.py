"""The guide is kept true: its example still gives what it prints, and every command line in it is one that
the program takes.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from proactor.annotation import annotate
from proactor.annotation.log_oracle import LogOracle
from proactor.catalogs import propose, read_catalog
from proactor.cli import app
from proactor.config_file import load_config, load_run
from proactor.sources import Corpus, load
from proactor.training.corpora import load_corpus

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support"
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Every line of a `sh` block that calls the program, continued lines joined, comments and settings of the
    environment cut off.
    """
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^(\w+=\S* )*", "", line) for line in lines if re.match(r"(\w+=\S* )*proactor ", line)]


def printed(beginning: str) -> list[str]:
    """The lines of the block of output that begins so."""
    blocks = [text for kind, text in BLOCKS if kind == "text" and text.startswith(beginning)]
    assert len(blocks) == 1, f"{len(blocks)} blocks begin with {beginning!r}"
    return [line.rstrip() for line in blocks[0].splitlines()]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example annotated from its logs."""
    out = tmp_path_factory.mktemp("support-windows")
    tools = EXAMPLE / "tools.json"
    corpus = load("jsonl", EXAMPLE / "transcripts.jsonl", catalog=str(tools))
    report = annotate(corpus.dialogues, propose(read_catalog(tools)).catalog, LogOracle(), out)
    assert report["dialogues"] == {"read": 20, "kept": 20, "failed": {}, "unanswered": {}}
    return out


def test_the_guide_shows_every_step() -> None:
    shown = {shlex.split(line, comments=True)[1] for line in command_lines()}
    assert {"catalog", "annotate", "train", "evaluate", "report", "calibrate", "compare"} <= shown


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_taken(line: str, windows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    group: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)
    if words[1] == "--profile":  # an option of every command, and its folder
        words = [words[0], *words[3:]]
    assert words[1] in group.commands, f"no command {words[1]!r}"
    command: click.Command = group.commands[words[1]]
    with command.make_context(
        words[1], words[2:]
    ) as given:  # refuses unknown options, and values of the wrong type
        for name in ("config", "source"):
            file = str(given.params.get(name) or "")
            assert not file.startswith("examples") or Path(file).exists(), f"no file {file}"
        if "config" in given.params:
            config, overrides = given.params["config"], list(given.params.get("overrides") or [])
            if "\nenvironment:" in Path(config).read_text():
                load_run(config, [*overrides, f"environment.path={windows}"])
            else:
                load_config(config, [*overrides, f"data.path={windows}"])


def test_the_example_has_the_windows_that_the_guide_tells(windows: Path) -> None:
    corpus = load("jsonl", windows)
    assert not any(corpus.counters.get(name, 0) for name in ("null", "effects_proposed", "no_catalog"))
    assert sum(r.observed_trigger is not None for d in corpus.dialogues for r in d.references) == 19
    shown = printed("chat-101 ")
    assert shown and all(line in told(corpus) for line in shown)
    assert {t.name for t in corpus.catalog.tools if t.confirm} == {"cancel_order", "book_repair"}


def told(corpus: Corpus) -> list[str]:
    """A line an action, as the guide's own few lines of Python print it."""
    return [
        f"{d.id} {r.name} open {r.coverage} ready {r.ready} run {r.observed_trigger}"
        for d in corpus.dialogues
        for r in d.references
    ]


def test_the_config_reads_what_annotate_wrote(windows: Path) -> None:
    file, path = EXAMPLE / "train.yaml", f"data.path={windows}"
    config = load_config(file, [path])
    assert config.pretrain is not None and config.pretrain.seconds <= 90, (
        "the example takes about two minutes"
    )
    held_out = load_config(file, [path, "data.dev.split=dev", "data.test.split=test"])
    sizes = [
        [len(load_corpus(c, part).dialogues) for part in ("train", "dev", "test")] for c in (config, held_out)
    ]
    assert sizes == [[14, 14, 20], [14, 2, 4]], "as the guide tells"


def test_printed_catalog_and_annotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("proactor.commands.common.console.width", 120)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = {line: shlex.split(line, comments=True)[1:] for line in command_lines()}
    catalog = next(words for line, words in lines.items() if words[0] == "catalog")
    marks = next(words for line, words in lines.items() if words[0] == "annotate" and "--oracle" not in words)
    for words, beginning in ((catalog, "┏"), (marks, "20 dialogues, 49 questions\n")):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert {line for line in printed(beginning) if line} <= {
            line.rstrip() for line in result.output.splitlines()
        }


def test_transcripts_are_plain_lines() -> None:
    lines = [
        json.loads(line) for line in (EXAMPLE / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {turn["speaker"] for line in lines for turn in line["turns"]} == {"customer", "agent"}
    assert not any("index" in turn for line in lines for turn in line["turns"]), "what a person would write"


def test_the_formats_that_the_guide_shows_are_read(tmp_path: Path) -> None:
    shown = [(kind, text) for kind, text in BLOCKS if kind in ("json", "csv")]
    assert [kind for kind, _ in shown] == ["json", "json", "csv"]
    for number, (kind, text) in enumerate(shown):
        if kind == "json":  # one line in the file; the dots stand for the turns up to the trigger
            text = (
                " ".join(text.replace("}, …]", "}]").replace('_trigger": 5', '_trigger": 1').split()) + "\n"
            )
        file = tmp_path / f"{number}.{'csv' if kind == 'csv' else 'jsonl'}"
        file.write_text(text, encoding="utf-8")
        corpus = load("jsonl", file, catalog=str(EXAMPLE / "tools.json"))
        assert len(corpus.dialogues) == 1 and len(corpus.dialogues[0].turns) == 2
        assert len(corpus.dialogues[0].references) == (kind == "json")


def test_every_formula_has_one_tag() -> None:
    header, tagged = "", 0
    for line in METHODS.partition("\n## 1.")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(line) <= set("|- "):
            header = header if cells else ""
            continue
        if not header:
            header = line
        elif "| tag |" in header:
            tags = [
                cell for cell in cells if cell in ("CODE", "PAPER", "SEED", "NOTES", "DERIVED", "INFERRED")
            ]
            assert len(tags) == 1, line
            tagged += 1
    assert tagged > 60
