"""How episodes end: shares by step and by part; a kind that nobody knows is shown as well."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from proactor.report.endings import endings_chart, endings_table
from proactor.training.episode_rows import BeforeAfter, EpisodeRow

ROWS = [
    {"kind": "grpo", "step": 1, "ending/terminated": 3.0, "ending/error": 1.0},
    {"kind": "eval", "step": 1, "eval_ending/terminated": 4.0},
    {"kind": "grpo", "step": 2, "ending/terminated": 2.0, "ending/<b>": 2.0},
    {"kind": "grpo", "step": 3, "ending/terminated": 4.0},
]


def test_a_column_a_step_holds_all_of_its_episodes() -> None:
    svg = endings_chart(ROWS)
    columns: dict[str, list[tuple[float, float]]] = {}
    for y, height, step in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"><title>step (\d)', svg):
        columns.setdefault(step, []).append((float(y), float(y) + float(height)))
    assert columns.keys() == {"1", "2", "3"}
    for parts in columns.values():  # from the bottom, 150, to the top, 10, each on the one before
        assert parts[0][1] == pytest.approx(150, abs=0.2) and parts[-1][0] == pytest.approx(10, abs=0.2)
        assert all(above[1] == pytest.approx(below[0], abs=0.2) for below, above in pairwise(parts))
    assert "environment failed 1 of 4" in svg and "&lt;b&gt; 2 of 4" in svg and "<b>" not in svg
    assert endings_chart(ROWS[:2]) == ""


def test_the_table_tells_thirds_of_training_and_the_test_tasks() -> None:
    def played(*endings: str) -> tuple[EpisodeRow, ...]:
        return tuple(EpisodeRow(task=f"t{i}", score=0.0, ending=e) for i, e in enumerate(endings))

    tested = BeforeAfter(success=1.0, before=played("turns", "turns"), after=played("turns", "terminated"))
    told = endings_table(ROWS, tested)
    assert told["ending_parts"] == ["first third of steps", "last third", "test, before", "test, after"]
    assert {row.kind: row.shares for row in told["endings"]} == {
        "terminated": (0.75, 1.0, 0.0, 0.5),
        "turns": (0.0, 0.0, 1.0, 0.5),
        "error": (0.25, 0.0, 0.0, 0.0),
    }
    assert endings_table([], None) == {"ending_parts": [], "endings": []}
