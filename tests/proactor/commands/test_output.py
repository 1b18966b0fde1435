"""Output that cannot be written: one line and nothing half-written; a reader that left; a second writer."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proactor.config_file import load_config
from proactor.output import READER_LEFT
from proactor.sole_writer import sole_writer
from proactor.training.runs import Run
from tests.proactor.commands.calls import call, refusal
from tests.proactor.fake_endpoint import FakeEndpoint, http_error
from tests.proactor.runs import config_file

SHORT = ("sft.max_steps=2", "grpo.steps=2", "eval.final=false")
TOOLS = "examples/support/tools.json"


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose run has ended; its run stands beside it."""
    file = config_file(tmp_path_factory.mktemp("output"), tiny_model)
    call("train", file, "sft.max_steps=2", "grpo.steps=2")
    return file


def started(*arguments: object, cwd: Path, **options: int) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "proactor.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, text=True, **{"stdout": pipe, "stderr": pipe, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- a full disk ---


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_but_for_locks(descriptor: int, data: bytes) -> int:
    return WRITE(descriptor, data) if b'"pid"' in data else full()


WRITE = os.write


COMMANDS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "evaluate": lambda config, out: ("evaluate", config, "--split", "dev"),
    "evaluate to a file": lambda config, out: ("evaluate", config, "--json", out / "file.json"),
    "calibrate": lambda config, out: ("calibrate", config, "--heat", 1),
    "report": lambda config, out: ("report", config),
    "report of two": lambda config, out: ("report", config, config),
    "compare": lambda config, out: ("compare", config, config, "--json", out / "file.json"),
    "catalog": lambda config, out: ("catalog", TOOLS, "-o", out / "file.json"),
    "annotate": lambda config, out: ("annotate", "synthetic", "--limit", 2, "--out", out),
    "train": lambda config, out: ("train", config, f"runs={out}", *SHORT),
}


@pytest.mark.parametrize(
    ("name", "broken"), [*((name, "fsync") for name in COMMANDS), ("annotate", "write"), ("train", "write")]
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    name: str,
    broken: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = load_config(trained).folder
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full if broken == "fsync" else full_but_for_locks)
        said = refusal(capsys, *COMMANDS[name](trained, tmp_path))
    assert re.fullmatch(rf"proactor: {trained.parents[1]}/.*: .*No space left on device.*", said)
    assert contents(folder) == before
    begun = {"windows.jsonl.partial", "catalog.json"}
    begun |= {f"tiny/{name}" for name in ("config.yaml", "catalog.json", "metrics.jsonl")}
    left = contents(tmp_path)
    assert left.keys() <= begun, "whole files only"
    for name, data in left.items():
        assert not data or data.endswith(b"\n"), name


def test_what_was_begun_on_a_full_disk_goes_on_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("annotate", "synthetic", "--limit", 3, "--out")
    call(*command, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refusal(capsys, *command, tmp_path / "broken")
    call(*command, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_full_disk_in_the_place_of_the_output_is_one_line(repo_root: Path) -> None:
    for arguments in (["--help"], ["catalog", TOOLS]):
        with (
            Path("/dev/full").open("w") as nowhere,
            started(*arguments, cwd=repo_root, stdout=nowhere.fileno()) as ended,
        ):
            _, said = ended.communicate()
        assert ended.returncode == 2
        assert said == "proactor: output cannot be written: No space left on device\n"


def test_a_refusal_that_cannot_be_printed_is_still_one(repo_root: Path) -> None:
    with (
        Path("/dev/full").open("w") as nowhere,
        started("catalog", "nothing", cwd=repo_root, stderr=nowhere.fileno()) as ended,
    ):
        said, _ = ended.communicate()
    assert (ended.returncode, said) == (2, "")


# -- a reader that left ---


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["catalog", TOOLS], ["annotate", "synthetic"]]
)
def test_a_command_whose_reader_left_ends_quietly(
    arguments: list[str], repo_root: Path, tmp_path: Path
) -> None:
    if arguments[0] == "annotate":
        arguments = [*arguments, "--limit", "2", "--out", str(tmp_path)]
    with started(*arguments, cwd=repo_root) as left:
        assert left.stdout is not None and left.stderr is not None
        left.stdout.close()
        said = left.stderr.read()
    assert (left.returncode, said) == (READER_LEFT, "") and READER_LEFT == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_training_goes_on_when_its_reader_left(tiny_model: Path, tmp_path: Path, repo_root: Path) -> None:
    file = config_file(tmp_path, tiny_model)
    with started("train", file, "sft.max_steps=2", "grpo.steps=2", cwd=repo_root) as left:
        assert left.stdout is not None and left.stderr is not None
        assert "synthetic: 4 train" in left.stdout.readline()
        left.stdout.close()
        said = left.stderr.read()
    assert (left.returncode, said) == (0, "")
    assert (load_config(file).folder / "report.html").is_file()


# -- one writer ---


@pytest.mark.parametrize(
    "name", ["evaluate", "calibrate", "report", "report of two", "catalog", "annotate", "train"]
)
def test_every_command_that_writes_waits_for_nobody(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny" if name == "train" else tmp_path
    if name in ("evaluate", "calibrate", "report", "report of two"):
        folder = load_config(trained).folder
    before = contents(load_config(trained).folder)
    with sole_writer(folder):
        said = refusal(capsys, *COMMANDS[name](trained, tmp_path))
        assert f"{folder}: another process writes there (pid {os.getpid()} on " in said
    assert contents(load_config(trained).folder) == before and not contents(tmp_path)
    call("evaluate", trained, "--split", "dev", "--json", tmp_path / "elsewhere.json")


def test_readers_need_no_lock(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = load_config(trained).folder
    with sole_writer(folder):
        call("sample", trained, "-n", "2")
        call("compare", folder, folder)
        call("evaluate", trained, "--split", "dev", "--json", folder.parent / "elsewhere.json")
    assert "reward" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("word", ["--resume", "--fresh"])
def test_a_second_training_is_refused_while_the_first_one_runs(
    word: str, tiny_model: Path, tmp_path: Path, repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, tiny_model)
    run = Run(load_config(file).folder)
    with started("train", file, *SHORT, cwd=repo_root) as first:
        while not run.begun and first.poll() is None:
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)
        said = refusal(capsys, "train", file, *SHORT, word)
        assert f"pid {first.pid} on" in said and f"train {file}" in said
        os.kill(first.pid, signal.SIGCONT)
        assert first.communicate()[1] == "" and first.returncode == 0
    assert [r["step"] for r in run.rows() if r["kind"] != "eval"] == [1, 2, 3, 4]
    call("train", file, *SHORT, "--resume")


def test_a_second_process_does_not_build_the_model_that_one_builds(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("pretrain.seconds=1", "pretrain.limit=20", f"model={tmp_path}/small")
    size = "pretrain.size={hidden: 32, layers: 1, heads: 2, kv_heads: 1, intermediate: 64, vocabulary: 400}"
    file = config_file(tmp_path, tiny_model)
    with sole_writer(tmp_path / "small", file=tmp_path / ".small.writer.lock"):
        assert f"{tmp_path}/small: another process writes there" in refusal(
            capsys, "pretrain", file, *wanted, size
        )
    call("pretrain", file, *wanted, size)
    names = {p.name for p in (tmp_path / "small").iterdir()}
    assert {"config.json", "pretrained.json", "tokenizer.json"} <= names
    assert {p.name for p in tmp_path.iterdir()} == {"small", "tiny.yaml"}


# -- failure is no success ---


@pytest.mark.parametrize("status", [401, 429, 500])
def test_an_endpoint_that_refuses_every_call_fails_the_annotation(
    status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(otherwise=http_error(status, "no more credit")) as fake:
        options = ("--oracle", "endpoint", "--model", "m", "--base-url", fake.url, "--concurrency", 16)
        said = refusal(capsys, "annotate", "synthetic", "--limit", 2, *options, "--out", tmp_path / "out")
    assert "none of 2 dialogues was answered" in said and "no more credit" in said and str(status) in said
    assert not (tmp_path / "out" / "windows.jsonl").exists()


def test_a_judge_that_refuses_every_call_ends_the_training(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(otherwise=http_error(401, "no such key")) as fake:
        judge = {"kind": "endpoint", "model": "m", "base_url": fake.url, "attempts": 1}
        file = config_file(
            tmp_path, tiny_model, reward="custom_ruler", reward_options={"judge": judge}, sft=None
        )
        said = refusal(capsys, "train", file, "grpo.steps=50", "grpo.failed_window=2")
    assert "in 2 steps, more than grpo.max_failed_share=0.5" in said and "no such key" in said
    assert "--resume continues" in said
    rows = Run(load_config(file).folder).rows()
    assert [r["step"] for r in rows if r["kind"] == "grpo"] == [1, 2], "the failed steps are told"
    assert json.dumps(rows)
