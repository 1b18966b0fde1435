"""How a command ends: a refusal is one line with exit code 2, a bug shows its traceback."""

from __future__ import annotations

import importlib
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import proactor
import proactor.kernels
from proactor import catalogs, cli
from proactor.config_file import load_config
from proactor.engine import ProactorError
from proactor.evaluation.store import save_evaluations
from proactor.sources import load
from proactor.training.provenance import FitSteps, check_destination, write_provenance
from tests.proactor.report.agents import evaluation
from tests.proactor.runs import config_file

DIALOGUES = load("synthetic", limit=2).dialogues
NOT_UTF8 = b"\xff\xfe{"


def run_catalog(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """`proactor catalog x` in this process, with ``error`` raised inside the command."""

    def read(source: str, format: str, **options: bool) -> None:
        raise error

    monkeypatch.setattr(catalogs, "read", read)
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
        status = (
            [400] if "status" in getattr(kind.__init__, "__annotations__", {}) else []
        )  # the server's own
        error = kind(*status, "grpo.lr: too high")
        assert refusal(monkeypatch, capsys, error) == "proactor: grpo.lr: too high\n"


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
        "import sys; from proactor import catalogs, cli\n"
        "catalogs.read = lambda source, format, key='sk-' + 'secret', **options: {}['planted']\n"
        "sys.argv = ['proactor', 'catalog', 'x']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError: 'planted'" in done.stderr
    assert "sk-secret" not in done.stderr  # values of variables may be keys


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A config whose model folder was built by `pretrain`, and whose run has files that can be read."""
    file = config_file(tmp_path, tmp_path / "model", pretrain={"seconds": 1})
    (tmp_path / "model").mkdir()
    steps = FitSteps(made=3, wanted=None, seconds=1, settled=False)
    write_provenance(tmp_path / "model", load_config(file).data, steps)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    played = evaluation(DIALOGUES, {})
    save_evaluations(
        tmp_path / "runs" / "tiny" / "evaluations.json", DIALOGUES, {"before": played, "after": played}
    )
    (tmp_path / "runs" / "tiny" / "metrics.jsonl").write_text("")
    return file


def end_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line on stderr of a command that is refused."""
    monkeypatch.setattr(sys, "argv", ["proactor", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    line = capsys.readouterr().err.strip()
    assert end.value.code == 2 and line.startswith("proactor: ") and "\n" not in line, line
    return line


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("metrics.jsonl", NOT_UTF8 + b"\n", ["report"], "metrics.jsonl:1: not UTF-8 (byte 0xff)"),
        ("metrics.jsonl", b"{}\n3\n", ["report"], "metrics.jsonl:2: not an object"),
        (
            "metrics.jsonl",
            b'{"step": 1' + b"0" * 400 + b"}\n",
            ["report"],
            "metrics.jsonl:1: not JSON (an integer of 401 characters)",
        ),
        ("summary.json", NOT_UTF8, ["report"], "summary.json:1: not UTF-8 (byte 0xff)"),
        ("summary.json", b"[]", ["report"], "summary.json: not a JSON object"),
        ("config.yaml", NOT_UTF8, ["report"], "config.yaml:1: not UTF-8 (byte 0xff)"),
        ("config.yaml", NOT_UTF8, ["train", "--resume"], "config.yaml:1: not UTF-8 (byte 0xff)"),
        ("config.yaml", b"seed: 1\nname: [", ["train", "--resume"], "config.yaml:2: not YAML ("),
        (
            "config.yaml",
            b"- seed",
            ["train", "--resume"],
            "config.yaml: expected keys and values, found list",
        ),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(
    run: Path,
    name: str,
    content: bytes,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run.parent / "runs" / "tiny" / name).write_bytes(content)
    command, *options = arguments
    assert message in end_of(capsys, monkeypatch, command, run, *options)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """What somebody may take for a run, by kind."""
    files = {"empty": (), "model": ("config.json", "pretrained.json"), "adapter": ("adapter_config.json",)}
    for kind, names in files.items():
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("a line")
    return {kind: tmp_path / kind for kind in (*files, "none", "notes.txt")}


FOLDER, TEXT = "no run's folder: it holds none of config.yaml", "expected keys and values, found str"


@pytest.mark.parametrize(
    ("command", "folder", "none", "file"),
    [
        ("report", FOLDER, "no such run", TEXT),
        ("compare", FOLDER, "no such run", TEXT),
        ("pool", FOLDER, "no such run", TEXT),
        ("doctor", FOLDER, "no such run", TEXT),
        ("calibrate", "a folder; a config is a YAML file", "no such file", TEXT),
        ("evaluate", "a folder; a config is a YAML file", "no such file", TEXT),
    ],
)
def test_what_is_no_run_is_named(
    places: dict[str, Path],
    command: str,
    folder: str,
    none: str,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(places["empty"].parent.rglob("*"))
    told = {"none": none, "notes.txt": file}
    for kind, place in places.items():
        arguments = (place, place) if command == "compare" else (place,)
        line = end_of(capsys, monkeypatch, command, *arguments)
        assert line.startswith(f"proactor: {place}: {told.get(kind, folder)}"), line
    assert set(places["empty"].parent.rglob("*")) == before, "nothing is written"


def test_a_config_that_is_a_run_is_told_its_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.parent / "runs" / "tiny"
    (folder / "config.yaml").write_text(run.read_text())
    line = end_of(capsys, monkeypatch, "calibrate", folder)
    assert line.endswith(f"a config is a YAML file; that of this run is {folder}/config.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NOT_UTF8, "pretrained.json:1: not UTF-8 (byte 0xff)"),
        (b'{"source": ', "pretrained.json: "),
        (b"[]", "pretrained.json: "),
        (b'{"source": "synthetic"}', "pretrained.json: unseen: Field required"),
        (b'{"source": "synthetic", "unseen": {"domains": 3}}', "pretrained.json: unseen.domains: "),
    ],
)
def test_a_damaged_record_of_a_small_model_is_one_line(
    run: Path,
    content: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run.parent / "model" / "pretrained.json").write_bytes(content)
    unseen = f"data.unseen.domains=[{DIALOGUES[0].domain}]"
    assert message in end_of(capsys, monkeypatch, "train", run, "--fresh", unseen)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for tool in tools %}", "prompt.catalog: line 1: Unexpected end of template"),
        ("{{ nothing }}", "prompt.catalog: 'nothing' is undefined"),
        ("{{ tools + 1 }}", "prompt.catalog: TypeError: can only concatenate tuple"),
    ],
)
def test_a_broken_template_is_one_line(
    run: Path,
    template: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, *overrides in (("train", "--fresh"), ("pretrain", f"model={run.parent}/new")):
        assert message in end_of(capsys, monkeypatch, command, run, *overrides, f"prompt.catalog={template}")


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-0.5B-Instruct", "some-owner/name", "gpt2"])
@pytest.mark.parametrize("command", [("train",), ("train", "--fresh"), ("pretrain",)])
def test_no_model_is_built_under_the_name_of_a_hub_model(
    run: Path,
    command: tuple[str, ...],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    line = end_of(capsys, monkeypatch, *command, run, f"model={model}")
    assert f"model {model}: looks like a hub id" in line and f"model=./{model} builds" in line
    assert set(tmp_path.rglob("*")) == before


def test_ranks_are_told_what_builds_the_model(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    overrides = (f"model={run.parent}/new", "pretrain.share=[0, 0.5]")
    line = end_of(capsys, monkeypatch, "train", run, *overrides)
    command = line.partition("this builds it, in one process: ")[2]
    assert shlex.split(command) == ["proactor", "pretrain", str(run), *overrides]


def test_pretrain_refuses_a_folder_that_it_did_not_build(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "model" / "pretrained.json").unlink()
    for command in ("train", "pretrain"):
        assert "no pretrain section built this folder" in end_of(capsys, monkeypatch, command, run)


@pytest.mark.parametrize("model", ["./small", "a/b/c", "/tmp/no-such/folder", "./owner/name"])
def test_a_path_is_a_destination(model: str) -> None:
    check_destination(model)


def test_resume_and_fresh_exclude_each_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = end_of(capsys, monkeypatch, "train", run, "--resume", "--fresh")
    assert "--resume continues the run, --fresh replaces it" in line
    assert (run.parent / "runs" / "tiny" / "evaluations.json").exists()


def test_pool_refuses_one_run_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.parent / "runs" / "tiny"
    assert "listed twice" in end_of(capsys, monkeypatch, "pool", folder, folder)
