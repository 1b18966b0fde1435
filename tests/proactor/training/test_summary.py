"""Pooling runs that differ by seed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from proactor.evaluation.paired import compare_runs
from proactor.evaluation.play import Evaluation, evaluate_policies
from proactor.evaluation.store import load_evaluations, save_evaluations
from proactor.files import SourceError
from proactor.report.comparison import table
from proactor.scoring.bootstrap import KEYS
from proactor.sources import load
from proactor.tables import metrics_table
from proactor.training.summary import pool_runs


def run(folder: Path, seed: int, before: str, after: str) -> tuple[Path, dict[str, Evaluation]]:
    dialogues = load("synthetic", limit=12, seed=seed).dialogues
    known = evaluate_policies(dialogues)
    folder.mkdir()
    save_evaluations(folder / "evaluations.json", dialogues, {"before": known[before], "after": known[after]})
    return folder, known


def test_means_and_paired_differences_over_runs(tmp_path: Path) -> None:
    first, known = run(tmp_path / "a", 0, "never", "values_seen")
    second, _ = run(tmp_path / "b", 0, "values_seen", "values_seen")
    summary = pool_runs([first, second], resamples=200)
    never, seen = (known[k].metrics["first_fire_f1"] or 0.0 for k in ("never", "values_seen"))
    assert summary["runs"] == 2 and summary["rising"]["first_fire_f1"] == 1
    assert summary["before"]["first_fire_f1"] == pytest.approx((never + seen) / 2)
    assert summary["after"]["first_fire_f1"] == pytest.approx(seen)
    change = summary["difference"]["first_fire_f1"]
    assert change["estimate"] == pytest.approx((seen - never) / 2) and change["low"] > 0


def test_runs_of_other_dialogues_are_refused(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a", 0, "never", "always")
    other, _ = run(tmp_path / "b", 1, "never", "always")
    with pytest.raises(SourceError, match="other dialogues"):
        pool_runs([first, other])
    with pytest.raises(SourceError, match="no such file"):
        pool_runs([tmp_path / "c"])
    file = other / "evaluations.json"
    file.write_text(file.read_text().replace('"before":', '"other":'))
    with pytest.raises(SourceError, match=f"{file}: no system 'before'"):
        pool_runs([other])


def test_one_run_does_not_count_as_two_seeds(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a", 0, "never", "always")
    (tmp_path / "link").symlink_to(first)
    for again in (first, tmp_path / "link", tmp_path / "link" / ".." / "a"):
        with pytest.raises(SourceError, match="listed twice"):
            pool_runs([first, again])


def test_an_undefined_metric_is_no_zero_and_no_nan(tmp_path: Path) -> None:
    """A policy that never fires has no first fire whose values could be right."""
    first, known = run(tmp_path / "a", 0, "never", "always")
    second, _ = run(tmp_path / "b", 0, "always", "values_seen")
    always, seen = (known[k].metrics["values_right"] for k in ("always", "values_seen"))
    assert known["never"].metrics["values_right"] is None and always is not None and seen is not None
    summary = pool_runs([first, second], resamples=100)
    assert summary["before"]["values_right"] == pytest.approx(always)  # of the one run that has it
    assert summary["difference"]["values_right"]["estimate"] == pytest.approx(seen - always)
    alone = pool_runs([first], resamples=100)
    assert alone["before"]["values_right"] is None and alone["rising"]["values_right"] == 0
    assert set(alone["difference"]["values_right"].values()) == {None}
    json.dumps([summary, alone], allow_nan=False)
    output = io.StringIO()
    systems = {name: alone[name] for name in ("before", "after")}
    Console(file=output, width=120).print(metrics_table("t", systems, KEYS, alone["difference"]))
    row = next(line for line in output.getvalue().splitlines() if "values right" in line)
    assert row.split("│")[2].strip() == "–" == row.split("│")[4].strip()


def test_a_zero_saved_for_an_undefined_metric_is_undefined_when_read(tmp_path: Path) -> None:
    folder, _ = run(tmp_path / "a", 0, "never", "always")
    file = folder / "evaluations.json"
    value = json.loads(file.read_text())
    value["evaluations"]["before"]["metrics"]["values_right"] = 0.0
    file.write_text(json.dumps(value))
    dialogues, systems = load_evaluations(file)
    assert systems["before"].metrics["values_right"] is None
    compared = compare_runs(
        ("x", "y"), (dialogues, dialogues), (systems["before"], systems["after"]), resamples=100
    )
    change = compared.metrics["values_right"]
    assert change.first is None and change.difference is None and not change.clear
    lines = table(systems["before"], systems["after"], {"never": systems["before"]})
    (line,) = [m for section in lines.values() for m in section if m.metric.key == "values_right"]
    assert line.verdict == "open" and line.best
    json.dumps(json.loads(compared.model_dump_json()), allow_nan=False)
