"""Pooling runs that differ by seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.evaluation.play import Evaluation, evaluate_policies
from proactor.evaluation.store import save_evaluations
from proactor.files import SourceError
from proactor.sources import load
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


def test_one_run_does_not_count_as_two_seeds(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "a", 0, "never", "always")
    (tmp_path / "link").symlink_to(first)
    for again in (first, tmp_path / "link", tmp_path / "link" / ".." / "a"):
        with pytest.raises(SourceError, match="listed twice"):
            pool_runs([first, again])
