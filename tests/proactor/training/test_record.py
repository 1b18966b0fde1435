"""What a run's folder says about the run: its rewards, its chosen step, what it was made with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import proactor
from proactor.files import SourceError
from proactor.training.origin import commit, machine, origin
from proactor.training.outcome import chosen_row, outcome
from proactor.training.record import RunRecord
from tests.proactor.training.test_outcome import grpo


def test_an_empty_folder_says_that_nothing_is_recorded(tmp_path: Path) -> None:
    record = RunRecord.read(tmp_path)
    assert record.chosen is None and record.training_reward is None and record.evaluation_reward is None
    assert set(record.facts().values()) == {"not recorded"}
    assert {"version", "commit", "machine", "chosen step", "seed", "model"} <= record.facts().keys()


def test_rewards_are_told_with_their_options(tmp_path: Path) -> None:
    def rewards(config: str) -> tuple[str | None, str | None]:
        (tmp_path / "config.yaml").write_text(config)
        record = RunRecord.read(tmp_path)
        return record.training_reward, record.evaluation_reward

    assert rewards("reward: utility\n") == ("utility", "utility")
    assert rewards("reward: general_ruler\nreward_options: {judge: x}\n") == (
        'general_ruler {"judge": "x"}',
        "weighted_metric",
    )
    assert rewards("reward: utility\neval: {reward_options: {late: 1}}\n") == (
        "utility",
        'weighted_metric {"late": 1}',
    )
    assert rewards("seed: 3\n") == ("weighted_metric", "weighted_metric")


def test_the_config_of_an_older_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: a/b\nseed: 3\nno_longer_known: 1\n")
    assert RunRecord.read(tmp_path).facts()["model"] == "a/b"


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("summary.json", "[]", "summary.json: not a JSON object"),
        ("summary.json", '{"chosen": {"phase": 3}}', "summary.json: chosen: phase"),
        ("config.yaml", "a: [", "config.yaml:1: not YAML"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, text: str, fault: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(SourceError, match=fault.replace("[", r"\[")):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("values", [[0.5, 0.6, 0.7, 0.7], [0.9, 0.1], [None, 0.0, 0.3]])
def test_the_row_of_the_chosen_step_holds_its_value(values: list[float | None]) -> None:
    rows = grpo(values)
    chosen = outcome(rows, "first_fire_f1")
    assert chosen is not None
    i = chosen_row(rows, chosen)
    assert i is not None and rows[i]["eval_first_fire_f1"] == values[values.index(chosen.best)]
    assert chosen_row(rows[:1], chosen) is None


def test_the_origin_names_version_commit_and_machine(tmp_path: Path) -> None:
    made = origin()
    assert made["version"] == proactor.__version__ and "torch" in (made["machine"] or "")
    assert "core" in machine() or "GPU" in machine() or "NVIDIA" in machine()
    assert commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("1")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head} +changes"
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None, "a package inside somebody's repository is not of it"


def test_a_summary_without_a_checkout_says_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"version": "1.0", "commit": None, "machine": "m"}))
    assert RunRecord.read(tmp_path).facts()["commit"] == "none: installed, not a checkout"
