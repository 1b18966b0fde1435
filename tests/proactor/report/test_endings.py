"""How episodes end: shares by step and by part; a kind that nobody knows is shown as well."""

from __future__ import annotations

import re

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
    heights: dict[str, float] = {}
    for height, step in re.findall(r'height="([\d.]+)"><title>step (\d)', svg):
        heights[step] = heights.get(step, 0.0) + float(height)
    assert heights.keys() == {"1", "2", "3"}
    assert all(height == pytest.approx(140, abs=0.2) for height in heights.values())
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
