"""How a benchmark ends that lacks the extra, the data or a file: in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bench


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rewards", "configs/sgd-small.yaml"], "PROACTOR_DATA is not set"),
        (["learning", "configs/none.yaml"], "none.yaml: no such file"),
    ],
)
def test_missing_data_is_one_line(repo_root: Path, arguments: list[str], line: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PROACTOR_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{arguments[0]}", *arguments[1:]],
        cwd=repo_root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and line in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("bench: ")


@pytest.mark.parametrize("module", ["trl", "peft", "datasets", "trl.trainer"])
def test_a_missing_extra_is_one_line(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    bench._print_refusal(type(error), error, None)
    assert capsys.readouterr().err == f"bench: {module} is not installed: pip install -e '.[bench]'\n"


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (KeyError("x"), ModuleNotFoundError("No module named 'y'", name="y")):
        bench._print_refusal(type(error), error, None)
        assert type(error).__name__ in capsys.readouterr().err


def test_importing_the_package_leaves_the_hook_alone() -> None:
    assert sys.excepthook is not bench._print_refusal
