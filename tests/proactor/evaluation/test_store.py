"""Evaluations on disk: they come back equal, and a file that does not fit is refused by one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from proactor.evaluation.play import evaluate_policies
from proactor.evaluation.store import load_evaluations, save_evaluations
from proactor.files import SourceError
from proactor.sources import load
from tests.proactor.report.agents import agent, evaluation

DIALOGUES = load("synthetic", limit=6, seed=3).dialogues


def saved(folder: Path) -> Path:
    file = folder / "evaluations.json"
    before = evaluation(DIALOGUES, agent(DIALOGUES, 1, 0.2))
    save_evaluations(file, DIALOGUES, {"before": before, **evaluate_policies(DIALOGUES)})
    return file


def test_round_trip(tmp_path: Path) -> None:
    named = {"before": evaluation(DIALOGUES, agent(DIALOGUES, 1, 0.2)), **evaluate_policies(DIALOGUES)}
    save_evaluations(tmp_path / "evaluations.json", DIALOGUES, named)
    dialogues, read = load_evaluations(tmp_path / "evaluations.json")
    assert tuple(dialogues) == DIALOGUES
    assert list(read) == list(named)
    assert read == named


def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path)
    old = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_evaluations(file, DIALOGUES[:1], {})
    assert file.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["evaluations.json"]


def test_a_file_of_version_1_is_scored_again(tmp_path: Path) -> None:
    file = saved(tmp_path)
    new = load_evaluations(file)
    value = json.loads(file.read_text())
    value["version"] = 1
    for old in value["evaluations"].values():
        old["metrics"] = {"reward": old["metrics"]["reward"]}
        for contribution in old["contributions"]:
            contribution["sums"] = {"unparsed": contribution["sums"]["unparsed"]}
    file.write_text(json.dumps(value))
    assert load_evaluations(file) == new


def _drop_sum(value: dict[str, Any]) -> None:
    del value["evaluations"]["before"]["contributions"][1]["sums"]["acted"]


def _rename_dialogue(value: dict[str, Any]) -> None:
    value["evaluations"]["never"]["replays"][0]["dialogue_id"] = "ghost"


def _unknown_key(value: dict[str, Any]) -> None:
    value["evaluations"]["before"]["extra"] = 1


def _old(value: dict[str, Any]) -> None:
    value["version"] = 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_sum, "evaluations.before.contributions.1.sums: acted"),
        (_rename_dialogue, "evaluations.never.replays.0: no dialogue 'ghost'"),
        (_unknown_key, "evaluations.before.extra"),
        (_old, "version: 0"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, said: str) -> None:
    file = saved(tmp_path)
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with pytest.raises(SourceError) as caught:
        load_evaluations(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


def test_missing_cut_off_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        load_evaluations(tmp_path / "evaluations.json")
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"evaluations\.json:1: not JSON"):
        load_evaluations(file)
    file.write_text("[]")
    with pytest.raises(SourceError, match="top level"):
        load_evaluations(file)
