"""How a command ends: a refusal is one line with exit code 2, a bug shows its traceback."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import proactor
import proactor.kernels
from proactor import cli
from proactor.commands import catalog
from proactor.engine import ProactorError


def run_catalog(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """`proactor catalog x` in this process, with ``error`` raised inside the command."""

    def read(source: str, format: str) -> None:
        raise error

    monkeypatch.setattr(catalog, "read", read)
    monkeypatch.setattr(sys, "argv", ["proactor", "catalog", "x"])
    cli.main()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception) -> str:
    """What stderr says when ``error`` ends the command with exit code 2."""
    with pytest.raises(SystemExit) as end:
        run_catalog(monkeypatch, error)
    assert end.value.code == 2
    return capsys.readouterr().err


def subclasses(kind: type[ProactorError]) -> set[type[ProactorError]]:
    return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))


def test_every_error_of_the_project_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in (proactor, proactor.kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    kinds = subclasses(ProactorError)
    assert {k.__name__ for k in kinds} >= {
        "ConfigError",
        "RunError",
        "SourceError",
        "EngineError",
        "KernelError",
    }
    for kind in kinds:
        assert refusal(monkeypatch, capsys, kind("grpo.lr: too high")) == "proactor: grpo.lr: too high\n"


def test_an_os_error_that_names_a_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PermissionError(13, "Permission denied", "runs/x/config.yaml")
    assert refusal(monkeypatch, capsys, error) == "proactor: runs/x/config.yaml: Permission denied\n"


@pytest.mark.parametrize(
    "bug", [ValueError("not a refusal"), KeyError("loss"), RuntimeError("x"), OSError(5, "no file named")]
)
def test_anything_else_is_a_bug(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    with pytest.raises(type(bug)) as caught:
        run_catalog(monkeypatch, bug)
    assert caught.value is bug


def test_a_bug_shows_its_traceback(repo_root: Path) -> None:
    code = (
        "import sys; from proactor import cli; from proactor.commands import catalog\n"
        "catalog.read = lambda source, format: {}['planted']\n"
        "sys.argv = ['proactor', 'catalog', 'x']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'planted'" in done.stderr
