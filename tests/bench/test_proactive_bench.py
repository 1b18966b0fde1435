"""Scores of a judge: their area under the curve, and the threshold that learned lines choose."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.proactive_bench import auc, best_threshold, main
from tests.proactor.methods.test_proactive_agent import judged
from tests.proactor.training.episodes import events_folder


def test_area_under_the_curve() -> None:
    assert auc([True, True, False, False], [3, 1, 2, 0]) == 0.75
    assert auc([True, False, False], [0, 0, 0]) == 0.5
    assert auc([True, False], [-1, 1]) == 0
    assert math.isnan(auc([True, True], [0, 1]))


def test_the_threshold_has_the_largest_f1() -> None:
    """Precision 2/3 and recall 1 from 1 on; 1 and 1/2 from 3 on."""
    assert best_threshold([True, False, True, False], [3, 2, 1, -5]) == 1
    assert best_threshold([False, True], [5, 4]) == 4


def test_a_judge_stands_beside_lines_that_read_next_to_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    model, data = events_folder(tmp_path / "model"), judged(tmp_path / "data")
    arguments = [str(data), "--model", str(model), "--batch", "24", "--tune", "12"]
    main([*arguments, "--steps", "2", "--results", str(tmp_path / "results")])
    [record] = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("*.json")]
    assert (record["train"], record["test"], record["tune"], len(record["losses"])) == (24, 6, 12, 2)
    systems = record["systems"]
    assert systems["always accepts"]["f1"] == pytest.approx(0.5) == systems["always accepts"]["auc"]
    assert systems["bag of words"]["auc"] == 1 and systems["bag of words"]["tuned"]["f1"] == pytest.approx(1)
    assert 0 <= systems["accept-reject model"]["auc"] <= 1
    assert "tuned f1" in capsys.readouterr().out
    main([*arguments, "--steps", "1", "--lines", "8", "--results", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
