"""The commands, as typed: what they print and write, and one line with exit code 2 for what cannot work."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import proactor
from proactor import cli
from proactor.catalogs import FORMATS, write_catalog
from proactor.catalogs.proactor import NAME
from proactor.commands import catalog as commands_catalog
from proactor.config_file import load_config
from proactor.engine import Engine, Group
from proactor.sources import load
from proactor.training.outcome import Outcome
from tests.proactor.commands.calls import call, refusal
from tests.proactor.runs import config_file


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose run has ended; its run stands beside it."""
    file = config_file(tmp_path_factory.mktemp("cli"), tiny_model)
    call("train", file, "sft.max_steps=2", "grpo.steps=2")
    return file


def test_train_leaves_a_report(trained: Path) -> None:
    folder = load_config(trained).folder
    assert {"summary.json", "report.html", "evaluations.json", "best", "start", "last"} <= {
        f.name for f in folder.iterdir()
    }
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    call("report", folder)
    assert (folder / "report.html").read_text() == before
    call("report", trained)


def test_the_summary_says_what_the_run_was_made_with(trained: Path) -> None:
    folder = load_config(trained).folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["version"] == proactor.__version__ and "torch" in summary["machine"]
    page = (folder / "report.html").read_text()
    chosen = Outcome.model_validate(summary["chosen"])
    for fact in (summary["version"], summary["commit"] or "not a checkout", summary["machine"]):
        assert html.escape(fact) in page
    assert str(chosen).split(",")[0] in page


@pytest.mark.parametrize(("columns", "width"), [("80", "80"), (None, "120")])
def test_a_pipe_takes_the_width_it_is_given(columns: str | None, width: str, repo_root: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", "from proactor.commands.common import console; print(console.width)"],
        cwd=repo_root,
        env=environment if columns is None else environment | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == width


def test_train_names_the_chosen_step(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = ("name=frozen", "sft=null", "grpo.steps=1", "grpo.lr=1e-12")
    call("train", trained, *frozen, "grpo.eval_every=1", "eval.metric=first_fire_f1")
    said = capsys.readouterr().out
    assert said.count("base linears: dense float32") == 1
    assert "GRPO never beat its start (best step 0): first-fire F1 on dev" in " ".join(said.split())
    assert "after: the start, GRPO never beat it" in said and "without spread" in " ".join(said.split())


def test_a_second_train_needs_a_word(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume continues it" in refusal(capsys, "train", trained)
    assert "seed was 0, now 1" in refusal(
        capsys, "train", trained, "seed=1", "sft.max_steps=2", "grpo.steps=2", "--resume"
    )


def test_evaluate_prints_metrics_beside_the_trivial_policies(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("evaluate", trained, "--adapter", "last", "--split", "dev")
    said = capsys.readouterr().out
    assert (
        "dev: 2 dialogues" in said and "first-fire F1" in said and "never" in said and "values seen" in said
    )
    assert "95% by dialogue: turn reward " in said and "first_fire_f1" not in said, "plain words in prose too"
    record = json.loads((load_config(trained).folder / "evaluate-dev-last.json").read_text())
    assert {"last", "never", "always", "intervals", "unparsed_share"} <= record.keys()


def test_evaluate_of_the_bare_model_needs_no_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("evaluate", trained, "name=bare", "--adapter", "none", "--json", trained.parent / "bare.json")
    assert json.loads((trained.parent / "bare.json").read_text())["adapter"] == "none"
    assert not (load_config(trained, ["name=bare"]).folder / "evaluate-test-none.json").exists()
    assert "test: 2 dialogues" in capsys.readouterr().out


def test_evaluations_of_other_splits_do_not_replace_each_other(trained: Path) -> None:
    folder = load_config(trained).folder
    call("evaluate", trained, "--adapter", "last")
    first = (folder / "evaluate-test-last.json").read_bytes()
    call("evaluate", trained, "--adapter", "last", "data.test.split=train")
    call("evaluate", trained, "--adapter", "last", "data.test.split=null")
    assert (folder / "evaluate-test-last.json").read_bytes() == first
    assert (folder / "evaluate-test-train-last.json").exists()
    assert (folder / "evaluate-test-all-last.json").exists()


def test_what_only_an_override_makes_valid_works_after_training_too(
    trained: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the folder of another machine."""
    monkeypatch.delenv("PROACTOR_DATA", raising=False)
    settings = load_config(trained)
    file = tmp_path / "tiny.yaml"
    file.write_text(trained.read_text().replace(str(tiny_model), "${PROACTOR_DATA}/model"))
    known = {f.name for f in settings.folder.iterdir()}
    call("evaluate", file, f"model={tiny_model}", "--adapter", "start")
    call("calibrate", file, f"model={tiny_model}", "--adapter", "start")
    call("report", file)
    added = {f.name for f in settings.folder.iterdir()} - known - {"scores"}
    kinds = ("probabilities", "thresholds", "tradeoff")
    assert added == {"evaluate-test-start.json", *(f"{kind}-dev-test-start.json" for kind in kinds)}


def test_an_evaluation_of_something_else_has_a_file_of_its_own(trained: Path, tmp_path: Path) -> None:
    folder = load_config(trained).folder
    call("evaluate", trained, "--adapter", "last")
    own = (folder / "evaluate-test-last.json").read_bytes()
    known = set(folder.glob("evaluate-*.json"))

    def written(*overrides: str, adapter: object = "last") -> str:
        """The name of the one file that a call adds."""
        call("evaluate", trained, "--adapter", adapter, *overrides)
        (file,) = set(folder.glob("evaluate-*.json")) - known
        known.add(file)
        return file.name

    assert written("data.test.limit=1") == "evaluate-test-limit-1-last.json"
    other = tmp_path / "windows.jsonl"
    dialogues = load("synthetic", limit=2, seed=9, size=40)
    other.write_text("".join(f"{d.model_dump_json()}\n" for d in dialogues.dialogues))
    write_catalog(dialogues.catalog, tmp_path / "catalog.json")
    source = ("data.source=jsonl", f"data.path={other}", "data.options={}", "data.keep={}")
    everything = [f"data.{part}.split=null" for part in ("train", "dev", "test")]
    name = written(*source, *everything)
    assert re.fullmatch("evaluate-test-all-jsonl-[0-9a-f]{8}-last.json", name)
    assert json.loads((folder / name).read_text())["played"] == {"source": "jsonl", "split": None, "limit": 2}
    digests = {written("data.seed=4"), written("eval.max_tokens=7"), written(adapter=folder / "best")}
    assert all(re.fullmatch("evaluate-test-(best-)?[0-9a-f]{8}(-last)?.json", digest) for digest in digests)
    call("evaluate", trained, "--adapter", "last", "eval.resamples=100", "data.dev.limit=1")
    assert set(folder.glob("evaluate-*.json")) == known
    call("evaluate", trained, "--adapter", "last")
    assert (folder / "evaluate-test-last.json").read_bytes() == own


HEAVY = {
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pydantic",
    "pydantic_core",
    "jinja2",
    "yaml",
    "matplotlib",
    "fastapi",
    "uvicorn",
}
COMMANDS = (
    "catalog import annotate plan make-checkpoint review train evaluate report calibrate run shadow compare "
    "doctor profile sample export serve pool pretrain demo".split()
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["--version"], [], *([name, "--help"] for name in COMMANDS)], ids=str
)
def test_help_and_version_import_nothing_slow(arguments: list[str], repo_root: Path) -> None:
    code = (
        "import sys; from proactor import cli\n"
        f"sys.argv = ['proactor', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        # some versions of typer import pydantic themselves to convert a command's options
        "known = {'pydantic', 'pydantic_core'} if 'typer._adapters' in sys.modules else set()\n"
        f"slow = {HEAVY!r} & set(sys.modules) - known; sys.exit(str(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or done.stderr.strip()


def test_help_names_every_command_and_format() -> None:
    named = [command.name for command in cli.app.registered_commands]
    assert named == COMMANDS
    assert commands_catalog.FORMATS == FORMATS and commands_catalog.NAME == NAME


def test_sample_shows_answers_with_their_reward(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("sample", trained, "-n", "2", "--split", "train")
    said = capsys.readouterr().out
    assert " 1 user: " in said and said.count("reward") >= 2
    call("sample", trained, "--prompt", "hello", "-n", "1", "--adapter", "none")


def test_an_answer_is_shown_as_it_is(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = r'[{"READY": "x"}] \[/x] [bold]'
    drawn = Engine.sample

    def sample(*arguments: Any, **options: Any) -> list[Group]:
        groups = drawn(*arguments, **options)
        for answer in (answer for group in groups for answer in group.samples):
            answer.text = text
        return groups

    monkeypatch.setattr(Engine, "sample", sample)
    call("sample", trained, "-n", "1", "--split", "train")
    assert text in capsys.readouterr().out


def test_thresholds_that_nothing_reaches_are_told(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("calibrate", trained, "--budget", "0")
    said = " ".join(capsys.readouterr().out.split())
    assert ("the agent never acts" in said) == ("common never, 0 of" in said)
    assert "the agent never acts" in said


def test_the_self_test_says_pass_or_fail(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        call("train", trained, "--overfit", "-1")
    assert end.value.code == 2 and "--overfit" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        call("train", trained, "--overfit", "1", "sft=null", "grpo.steps=1", "grpo.lr=1e-9")
    assert end.value.code == 1 and "FAIL: turn reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["train", "CONFIG", "grpo.lrr=1"],
            "override 'grpo.lrr=1': unknown key 'grpo.lrr' (did you mean 'lr'?)",
        ),
        (["train", "none.yaml"], "none.yaml: no such file"),
        (["train", "CONFIG", "name=x", "model=no-such-model-folder"], "no-such-model-folder"),
        (["train", "CONFIG", "name=x", "reward=nothing"], "reward 'nothing' is unknown"),
        (["train", "CONFIG", "name=x", "reward=no_module:f"], "No module named 'no_module'"),
        (["train", "CONFIG", "name=x", "sft=null", "grpo=null"], "nothing to train"),
        (["train", "CONFIG", "name=x", "data.source=star"], "corpus 'star' needs a path"),
        (["evaluate", "CONFIG", "--split", "later"], "--split later"),
        (["evaluate", "CONFIG", "--adapter", "no/where"], "no/where: no adapter there"),
        (["sample", "CONFIG", "--dialogue", "x"], "--dialogue x"),
        (["sample", "CONFIG", "--turn", "2"], "--turn 2"),
        (["report", "no/run"], "no/run"),
        (["pretrain", "CONFIG"], "no pretrain section"),
    ],
)
def test_bad_input_is_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert part in refusal(capsys, *[trained if a == "CONFIG" else a for a in arguments])


def test_a_malformed_dialogue_is_named_by_file_and_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "star.jsonl").write_text('{"dialogue_id": "a"}\n\n')
    (tmp_path / "apis.json").write_text("{}")
    said = refusal(
        capsys, "train", trained, "name=x", "data.source=star", f"data.path={tmp_path}", "data.options={}"
    )
    assert "star.jsonl:2: empty line" in said


def test_the_demo_is_a_config_of_the_checkout(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> None:
    calls: list[tuple[Path, list[str], dict[str, object]]] = []
    monkeypatch.setattr(
        cli.train, "train", lambda config, overrides, **options: calls.append((config, overrides, options))
    )
    call("demo", "seed=5")
    ((config, overrides, options),) = calls
    assert config.samefile(repo_root / "configs" / "demo.yaml")
    assert (overrides, options) == (["seed=5"], {"fresh": True})


def test_help_is_quick_to_come(repo_root: Path) -> None:
    code = "import sys, proactor.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root).returncode == 0


def test_a_config_can_bring_its_own_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (
        "pretrain.size={hidden: 32, layers: 1, heads: 2, kv_heads: 1, intermediate: 64, vocabulary: 400, "
        "batch: 2}"
    )
    wanted = (f"model={tmp_path}/small", "pretrain.seconds=1", "pretrain.limit=20")
    assert "pretrain.size" in refusal(capsys, "pretrain", trained, *wanted, "pretrain.size.hiden=3")
    call("pretrain", trained, *wanted, size)
    assert (tmp_path / "small" / "config.json").is_file()
    record = json.loads((tmp_path / "small" / "pretrained.json").read_text())
    assert record["unseen"] == {"domains": [], "tools": [], "each": None, "seen": 0}
    assert record["steps"].items() >= {"wanted": None, "seconds": 1.0}.items() and record["steps"]["made"] > 0
    call("evaluate", trained, "name=small", *wanted, size, "--adapter", "none", "data.too_long=drop")
    assert "test: " in capsys.readouterr().out


def test_version_and_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    call("--version")
    assert capsys.readouterr().out == f"proactor {proactor.__version__}\n"
    for arguments in (["-h"], ["train", "-h"]):
        call(*arguments)
        assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "none.yaml"],
        ["train", "configs/demo.yaml", "grpo.lrr=1"],
        ["train", "configs/function-small.yaml", "environment.gim=function"],
        ["train", "configs/demo.yaml", "--resume", "--fresh"],
        ["train", "configs/demo.yaml", "model=owner/name"],
        ["train", "configs/demo.yaml", "model=./no-such-model", "reward=nothing"],
        ["evaluate", "configs/demo.yaml", "--split", "later"],
        ["evaluate", "configs/demo.yaml", "--adapter", "no/where"],
        ["sample", "configs/demo.yaml", "--split", "later"],
        ["calibrate", "configs/demo.yaml", "--split-dev", "later"],
        ["report", "no/run"],
        ["compare", "no/run", "no/other"],
        ["pool", "no/run", "no/other"],
        ["annotate", "no/file"],
        ["catalog", "no/file"],
    ],
)
def test_help_and_wrong_input_answer_before_heavy_imports(
    arguments: list[str], repo_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "configs").symlink_to(repo_root / "configs")
    code = (
        "import sys; from proactor import cli\n"
        f"sys.argv = ['proactor', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
    )
    wanted = "0" if arguments == ["--help"] else "2"
    assert done.stderr.splitlines()[-1] == f"{wanted} set()", done.stderr
