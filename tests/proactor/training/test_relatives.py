"""Agent-Omit and SAND from one config: end to end on a tiny model, and resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.environments.demonstration import Demonstration
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.episode_config import EpisodeConfig
from proactor.methods.omit_format import OmitWording, omission
from proactor.progress import Stopped
from proactor.training.episodes import open_tasks
from proactor.training.episodes_loop import train_episodes
from tests.proactor.training.episodes import Guess, calling_folder, config
from tests.proactor.training.test_loop import Asks, assert_equal, rows

pytestmark = pytest.mark.usefixtures("guess")

PLAY = {"sampling": {"max_tokens": 24}, "max_tokens": 300}
FAMILY = {"signs": "+-", "largest": 2, "train": 7, "test": 2, "seed": 0, "max_turns": 4}
OMIT = {"name": "agent_omit", "options": {"instruct": False}}


@pytest.fixture(scope="module")
def omitting_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaves its thoughts out, and takes the first result out in its second turn."""
    said = ("<think></think>", "<think></think>" + omission(1))
    folder = tmp_path_factory.mktemp("omitting") / "model"
    return calling_folder(folder, Guess("0").reset(0), said=said, wording=OmitWording(False), context=512)


@pytest.fixture(scope="module")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls at random, after the opening of a function."""
    gym = FunctionFamily(**FAMILY)  # type: ignore[arg-type]
    opening = gym.make(gym.tasks("train")[0]).reset(0)
    return calling_folder(tmp_path_factory.mktemp("family") / "model", opening, steps=20, context=2048)


def ended(folder: Path, settings: EpisodeConfig, kind: str) -> list[dict[str, Any]]:
    """The rows of a run's second stage."""
    train_episodes(settings)
    return [row for row in rows(folder) if row["kind"] == kind]


def stopped_and_resumed(settings: EpisodeConfig, after: int) -> None:
    with pytest.raises(Stopped, match=f"after step {after}, saved"):
        train_episodes(settings, resume=True, ui=Asks(after))
    train_episodes(settings, resume=True)


def test_agent_omit_trains_on_edited_histories_and_resumes_bitwise(
    omitting_model: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"environment": {"gym": "guess", "dev": 4, "play": PLAY}, "method": OMIT}
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = config(tmp_path / "whole", omitting_model, "grpo.steps=2", **changes)
    steps = ended(whole.folder, whole, "grpo")
    assert sum(row["omit/observations"] for row in steps) > 0 and steps[0]["omit/thoughts"] > 0
    for row in steps:
        assert row["ratio_max_error"] == 0 and row["sampler_trainer_gap"] == 0
        assert row["reward_mean"] == pytest.approx(row["score"]), "an episode counts once"
        assert {"omit/unknown", "omit/repeated", "omit/partials"} <= row.keys()
    assert any(row["grad_norm"] > 0 for row in steps)
    [first] = (whole.folder / "samples").glob("grpo-000001.jsonl")
    turns = [t for line in first.read_text().splitlines() for t in json.loads(line)["turns"]]
    assert all(turn["advantage"] is not None for turn in turns)
    cut = config(tmp_path / "cut", omitting_model, "grpo.steps=2", "save_every=100", **changes)
    stopped_and_resumed(cut, 1)
    assert_equal(cut.folder, whole.folder)


def family(
    folder: Path, model: Path, method: dict[str, Any], *overrides: str, **changes: Any
) -> EpisodeConfig:
    folder.mkdir()
    return config(
        folder,
        model,
        *overrides,
        engine={"deterministic": True, "kv_tokens": 8192},
        environment={
            "gym": "function_family",
            "options": FAMILY,
            "dev": 1,
            "play": {"sampling": {"max_tokens": 8}, "max_tokens": 1500},
        },
        method=method,
        grpo=None,
        **changes,
    )


def test_sand_deliberates_anew_in_each_iteration_and_resumes_bitwise(
    family_model: Path, tmp_path: Path
) -> None:
    options = {
        "candidates": 2,
        "iterations": 2,
        "updates": 2,
        "batch_tasks": 2,
        "tasks": 2,
        "eval_every": 2,
        "update": {"lr": 1e-3},
        "critic": "rule",
    }
    method = {"name": "sand", "options": options}
    whole = family(tmp_path / "whole", family_model, method)
    steps = ended(whole.folder, whole, "sand")
    assert [row["iteration"] for row in steps] == [0, 0, 1, 1]
    assert all(row["grad_norm"] > 0 and row["demonstrations"] == 2 for row in steps)
    assert steps[0]["sand/steps"] > 0 and steps[0]["sand/refused"] == 0
    assert ["sand/steps" in row for row in steps] == [True, False, True, False], "once an iteration"
    files = sorted(file.name for file in (whole.folder / "samples").iterdir())
    assert files == ["deliberations-000000.jsonl", "deliberations-000002.jsonl"]
    made = [json.loads(line) for line in (whole.folder / "samples" / files[0]).read_text().splitlines()]
    assert len(made) == 2 and all(row["critic"] == "rule" for row in made)
    assert all(row["thoughts"].keys() == row["candidates"].keys() for row in made)
    assert sum(len(row["thoughts"]) for row in made) == steps[0]["sand/flagged"] > 0
    for stop in (1, 3):
        cut = family(tmp_path / f"cut{stop}", family_model, method, "save_every=100")
        stopped_and_resumed(cut, stop)
        assert_equal(cut.folder, whole.folder)


def test_sand_without_candidates_goes_on_with_the_expert_s_episodes(
    family_model: Path, tmp_path: Path
) -> None:
    options = {"candidates": 0, "iterations": 1, "updates": 1, "batch_tasks": 2}
    settings = family(
        tmp_path / "plain", family_model, {"name": "sand", "options": options}, "eval.final=false"
    )
    [row] = ended(settings.folder, settings, "sand")
    assert row["demonstrations"] == 2 and "sand/steps" not in row
    assert not (settings.folder / "samples").exists()


def test_an_expert_that_is_answered_otherwise_teaches_nothing_and_is_counted(
    family_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"candidates": 1, "iterations": 2, "updates": 1, "batch_tasks": 6, "tasks": 2, "critic": "rule"}
    method = {"name": "sand", "options": options}
    settings = family(tmp_path / "refused", family_model, method, "eval.final=false")
    lost = open_tasks(settings)[1].train[0]
    monkeypatch.setattr(Demonstration, "refused_by", lambda told, replayed: told.task == lost)
    steps = ended(settings.folder, settings, "sand")
    assert [(row["sand/refused"], row["left_out_refused"], row["demonstrations"]) for row in steps] == [
        (1, 1, 5)
    ] * 2, "of six tasks, and in the next iteration too"
    assert all(row["sand/steps"] > 0 for row in steps), "the other task's"


def test_the_cold_start_is_tried_once_and_kept(family_model: Path, tmp_path: Path) -> None:
    method = {"name": "agent_omit", "options": {"instruct": False, "cold_tasks": 2, "tries": 1}}
    sft = {"lr": 1e-3, "batch_tasks": 2, "max_steps": 2, "eval_every": 2}
    whole = family(tmp_path / "whole", family_model, method, "eval.final=false", sft=sft)
    steps = ended(whole.folder, whole, "sft")
    assert len(steps) == 2 and all(row["demonstrations"] == 2 for row in steps)
    file = whole.folder / "samples" / "omit-000000.jsonl"
    made = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(made) == 3 and sum(row["counts"]["omit/tried"] for row in made) > 0, "and the dev task"
    assert any(row["thoughts"] for row in made), "an expert's thoughts can go where its turns are given"
    cut = family(tmp_path / "cut", family_model, method, "eval.final=false", "save_every=100", sft=sft)
    with pytest.raises(Stopped):
        train_episodes(cut, ui=Asks(1))
    kept = (cut.folder / "samples" / "omit-000000.jsonl").read_text()
    train_episodes(cut, resume=True)
    assert kept == file.read_text() and rows(cut.folder) == rows(whole.folder)


def test_sand_beside_grpo_is_refused(family_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grpo: SAND is a stage B of its own"):
        config(tmp_path, family_model, method={"name": "sand"})
