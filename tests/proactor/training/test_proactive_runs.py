"""Proactive Agent from one config: the judge is trained where it is missing, then is the reward of GRPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.environments.gyms.event_streams import EventsGym, proposal
from proactor.environments.protocol import Call
from proactor.episode_config import EpisodeConfig
from proactor.files import SourceError
from proactor.methods.proactive_agent import AcceptReject
from proactor.progress import Stopped
from proactor.training.episodes_loop import train_episodes
from tests.proactor.environments.test_event_streams import line, write
from tests.proactor.training.episodes import config, events_folder
from tests.proactor.training.test_loop import Asks, assert_equal, rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events_folder(tmp_path_factory.mktemp("events") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five streams; "good" is accepted everywhere, silence and "bad" nowhere."""
    tasks = ("good", "bad", None)
    lines = [line(n, task, task == "good", s) for s in "abcde" for n in (1, 2) for task in tasks]
    return write(tmp_path_factory.mktemp("judged"), *lines)


def settings(folder: Path, model: Path, data: Path, judge: Path, *overrides: str) -> EpisodeConfig:
    folder.mkdir(exist_ok=True)
    user = {
        "kind": "accept_reject",
        "adapter": str(judge),
        "train": {"lr": 3e-3, "steps": 60, "batch_lines": 24},
        "engine": {"kv_tokens": 4096},
    }
    environment = {
        "gym": "events",
        "path": str(data),
        "user": user,
        "dev": 2,
        "host": {"timeout": 600},
        "play": {"sampling": {"max_tokens": 12}, "max_tokens": 40},
    }
    stage = {"lr": 1e-2, "n": 6, "batch_tasks": 3, "steps": 3, "eval_every": 3}
    changes: dict[str, Any] = {"environment": environment, "method": {"name": "userrl"}, "grpo": stage}
    return config(folder, model, *overrides, **changes)


def test_a_run_trains_its_judge_and_is_paid_by_it(model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    whole = settings(tmp_path / "whole", model, data, folder)
    stopped = settings(tmp_path / "stopped", model, data, folder, "save_every=100")
    train_episodes(whole)
    adapter = (folder / "adapter_model.safetensors").read_bytes()
    steps = [row for row in rows(whole.folder) if row["kind"] == "grpo"]
    assert all(row["user/requests"] > 0 == row["episodes_failed"] for row in steps)
    assert max(row["grad_norm"] for row in steps) > 0 < sum(row["groups_with_spread"] for row in steps)
    judge = AcceptReject(str(model), str(folder), engine={"kv_tokens": 4096})
    judge.bind(None)  # type: ignore[arg-type]
    gym = EventsGym(data, judge)
    seen = set[tuple[str, float]]()
    for file in (whole.folder / "samples").iterdir():
        for text in file.read_text().splitlines():
            episode = json.loads(text)
            for turn in (t for t in episode["turns"] if t["calls"]):
                call = Call(turn["calls"][0]["verb"], arguments=turn["calls"][0]["arguments"])
                world = gym.make(episode["task"])
                world.reset(0)
                assert world.step(call).reward == turn["reward"]
                seen.add((str(proposal(call)), turn["reward"]))
    assert {reward for _, reward in seen} == {0.0, 1.0} and ("good", 1.0) in seen
    with pytest.raises(Stopped, match="after step 2, saved"):
        train_episodes(stopped, ui=Asks(2))
    train_episodes(stopped, resume=True)
    assert_equal(stopped.folder, whole.folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == adapter  # read, not trained again


def test_a_judge_that_cannot_be_had_is_refused_before_anything_is_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    run = settings(tmp_path, model, data, tmp_path / "judge", "environment.user.data=null")
    with pytest.raises(ConfigError, match=r"environment\.user accept_reject: no adapter in .*; name data"):
        train_episodes(run)
    assert not run.folder.exists()


def test_lines_that_nobody_judged_are_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    lost = write(tmp_path, *(line(n, task, None) for n in (1, 2) for task in ("good", None)))
    run = settings(tmp_path / "run", model, lost, tmp_path / "judge")
    with pytest.raises(SourceError, match="0 judged lines of 0 streams") as refused:
        train_episodes(run)
    assert "\n" not in str(refused.value) and not run.folder.exists()
