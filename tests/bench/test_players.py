"""A trained policy beside scripted players: one run a seed, a record with paired differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import players
from proactor.methods.user_metrics import metrics, paired_change
from proactor.training.episode_pairs import outcomes_of, read_tested
from tests.proactor.training.test_recommendation_runs import SMALLER


def test_ends_of_runs_are_paired_with_players_by_task(
    repo_root: Path, tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "configs" / "taira-small.yaml"
    smaller = [*SMALLER, "pretrain.steps=2", "name=tiny", f"model={tmp_path / 'model'}", f"runs={tmp_path}"]
    arguments = [str(file), *smaller, "--arms", "random,expert", "--results", str(tmp_path / "results")]
    players.main([*arguments, "--seeds", "2"])
    assert ran == ["pretrain tiny", "train tiny-s0", "train tiny-s1"]
    [record] = [json.loads(f.read_text()) for f in (tmp_path / "results").rglob("players-tiny.json")]
    assert (record["seeds"], record["tasks"]) == ([0, 1], 4)
    assert set(record["difference"]) == {"before", "random", "expert"}
    folders = [tmp_path / f"tiny-s{seed}" for seed in (0, 1)]
    for name in ("after", "expert"):
        alone = [metrics(outcomes_of(folder, read_tested(folder), name))["score"] for folder in folders]
        assert record["systems"][name]["score"]["estimate"] == pytest.approx(sum(alone) / 2)
    gap = record["difference"]["expert"]["score"]["estimate"]
    after, expert = (record["systems"][name]["score"]["estimate"] for name in ("after", "expert"))
    assert gap == pytest.approx(after - expert) and gap < 0, "two steps make no expert"
    players.main([*arguments, "--seeds", "1", "--report"])
    assert len(ran) == 3 and "after minus it" in capsys.readouterr().out
    [record] = [json.loads(f.read_text()) for f in (tmp_path / "results").rglob("players-tiny.json")]
    before, after = (read_tested(folders[0]).outcomes(side) for side in ("before", "after"))
    change = paired_change(before, after, ["score"])["score"]
    assert record["difference"]["before"]["score"]["low"] == pytest.approx(change.low)


def test_unknown_players_are_refused(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        players.main([str(repo_root / "configs" / "taira-small.yaml"), "--arms", "random,nobody"])
    assert "--arms: nobody: there are expert, " in capsys.readouterr().err


def test_without_an_ended_run_nothing_is_reported(
    repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        players.main([str(repo_root / "configs" / "taira-small.yaml"), "--report", f"runs={tmp_path}"])
    assert "no run has ended" in capsys.readouterr().err
