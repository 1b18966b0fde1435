"""What commands do with runs in an environment: pair them, draw them together, or refuse in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from proactor.methods.user_metrics import KEYS, metrics, paired_change, without_failed
from proactor.training.episode_rows import read_before_after
from tests.proactor.commands.calls import call, refusal
from tests.proactor.report.episode_runs import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "a"), write_run(folder / "b", seed=1, skill=0.3)


def test_compare_pairs_them_by_task(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("compare", *runs, "--json", tmp_path / "numbers.json", "--resamples", 200)
    said = capsys.readouterr().out
    assert "11 test tasks (1 episode failed); change: b - a" in said
    written = json.loads((tmp_path / "numbers.json").read_text())
    read = [read_before_after(folder) for folder in runs]
    a, b = ([row.outcome(1.0) for row in one.after] for one in read if one)
    for folder, kept in zip(runs, without_failed(a, b), strict=True):
        values = {key: value for key, value in metrics(kept).items() if key in KEYS}
        assert len(kept) == 11 and written["systems"][folder.name] == pytest.approx(values)
        assert f"{values['score']:.3f}" in said
    wanted = paired_change(a, b, KEYS, resamples=200)
    for key, change in written["difference"].items():
        assert change["estimate"] == pytest.approx(wanted[key].estimate)
        assert (change["low"], change["high"]) == pytest.approx((wanted[key].low, wanted[key].high))


def test_compare_takes_the_start_too(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    call("compare", runs[0], runs[0], "--against", "before", "--resamples", 200)
    said = capsys.readouterr().out
    summary = json.loads((runs[0] / "summary.json").read_text())
    change = summary["difference"]["score"]
    assert "change: a - a before" in said and f"{change['estimate']:+.3f}" in said


@pytest.mark.parametrize(
    ("against", "said"),
    [("random", "above 0\n"), ("expert", "below 0\n"), ("after", "around 0: no difference is shown\n")],
)
def test_compare_takes_scripted_players(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], against: str, said: str
) -> None:
    """The run solves seven tasks in ten by its rows, the expert all, a player at random few."""
    run = write_run(tmp_path / "many", tests=80)
    call("compare", run, run, "--against", against, "--resamples", 200)
    line = next(one for one in capsys.readouterr().out.splitlines(True) if one.startswith("score against"))
    assert line.endswith(said)


def test_report_takes_any_number(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    call("report", runs[0])
    call("report", *runs, runs[1])
    said = re.sub(r"\s+", "", capsys.readouterr().out)
    for name in ("report.html", "report-b-b.html"):
        assert f"report:{runs[0] / name}" in said and (runs[0] / name).is_file()


def test_what_is_refused_is_one_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogues, short = tmp_path / "dialogues", write_run(tmp_path / "short", final=False)
    fewer = write_run(tmp_path / "fewer", tests=11)
    other = write_run(tmp_path / "other")
    dialogues.mkdir()
    (dialogues / "config.yaml").write_text("data: {}\n")
    episodes = json.loads((other / "episodes.json").read_text()) | {"success": 0.5}
    (other / "episodes.json").write_text(json.dumps(episodes))
    for command in ("report", "compare", "pool"):
        said = refusal(capsys, command, runs[0], dialogues)
        assert f"{runs[0]}: a run in an environment, {dialogues} is one on dialogues" in said
    assert "pool takes runs on dialogues" in refusal(capsys, "pool", *runs)
    assert "episodes.json: no such file: the run has not" in refusal(capsys, "compare", runs[0], short)
    assert "no system 'human': one of before, after" in refusal(capsys, "compare", *runs, "--system", "human")
    assert "has no episode of task 'test-11'" in refusal(capsys, "compare", runs[0], fewer)
    assert "solved at a score of 0.5, in" in refusal(capsys, "compare", runs[0], other)


def test_a_config_whose_run_is_not_there(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, "report", repo_root / "configs" / "function-small.yaml")
    assert "runs/function-small: no such run" in said and not (tmp_path / "runs").exists()
    said = refusal(capsys, "evaluate", repo_root / "configs" / "function-small.yaml")
    assert "a run in an environment; train, pretrain, report and compare take those" in said
