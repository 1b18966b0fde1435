"""Episodes as rows: what they count, and rows that an older version wrote."""

from __future__ import annotations

from dataclasses import replace

from proactor.methods.user_metrics import Outcome
from proactor.training.episode_rows import EpisodeRow
from tests.proactor.methods.episodes import episode, failed

OLD = {
    "task": "t",
    "score": 1.0,
    "ending": "terminated",
    "turns": [
        {"calls": [{"verb": "answer"}, {"verb": "answer"}], "user_involved": True, "tokens": 4},
        {"calls": [{"verb": "action"}], "user_involved": False},
        {"calls": []},
    ],
}


def test_a_row_counts_what_its_episode_counts() -> None:
    one = episode([0.0, 1.0], "eu")
    one.turns = [one.turns[0], replace(one.turns[1], ran=6, user_involved=5)]
    read = EpisodeRow.model_validate_json(EpisodeRow.of(one, 0).model_dump_json())
    assert (read.user_actions, read.actions) == (5, 7)
    assert read.outcome(1.0) == Outcome.of(one)


def test_rows_of_before_read_as_one_action_a_call() -> None:
    read = EpisodeRow.model_validate(OLD)
    assert (read.user_actions, read.actions) == (1, 4)
    assert type(read.turns[0].user_involved) is int and not read.outcome(1.0).failed


def test_a_failed_episode_is_a_failed_outcome() -> None:
    assert EpisodeRow.of(failed("timeout"), 0).outcome(1.0).failed
