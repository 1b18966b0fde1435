"""Runs in Turtle, whose user and judge is a model: the engine that trains, or an endpoint."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.episode_config import EpisodeConfig
from proactor.progress import Stopped
from proactor.training.episodes_loop import train_episodes
from tests.proactor.environments import own_tasks
from tests.proactor.environments.test_guessing import Scripted, world
from tests.proactor.fake_endpoint import FakeEndpoint, computed, dropped
from tests.proactor.training.episodes import calling_folder, config
from tests.proactor.training.test_loop import Asks, assert_equal, rows

CONTEXT = 1024


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "turtle_stories.json"
    file.write_text(json.dumps(own_tasks.STORIES))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls in Turtle, and knows no word that answers a question."""
    folder = tmp_path_factory.mktemp("turtle")
    opening = world(folder, "turtle", Scripted()).reset(0)
    return calling_folder(folder / "model", opening, context=CONTEXT, words=["less"])


Configure = Callable[..., EpisodeConfig]


@pytest.fixture
def turtle(stories: Path, model: Path, tmp_path: Path) -> Configure:
    def configure(*overrides: str, folder: Path = tmp_path, user: Any = None, **engine: Any) -> EpisodeConfig:
        folder.mkdir(exist_ok=True)
        return config(
            folder,
            model,
            "grpo.steps=2",
            "grpo.batch_tasks=1",
            "eval.final=false",
            *overrides,
            engine={"kv_tokens": 8192, **engine},
            environment={
                "gym": "turtle",
                "path": str(stories),
                "user": user or {"kind": "engine", "max_tokens": 4},
                "options": {"max_turns": 2},
                "dev": 1,
                "host": {"timeout": 600},
                "play": {"sampling": {"max_tokens": 8}, "max_tokens": 400},
            },
        )

    return configure


def steps(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if row["kind"] == "grpo"]


def total(logged: list[dict[str, Any]], counter: str) -> float:
    """A counter added over training and evaluations."""
    return sum(row.get(counter, 0) + row.get(f"eval_{counter}", 0) for row in logged)


def test_a_user_that_answers_nonsense_is_counted_and_the_run_goes_on(turtle: Configure) -> None:
    """The bare model in one batch with the agent: it gives no mark that can be read, so no reward."""
    settings = turtle("eval.final=true")
    train_episodes(settings)
    [first, second] = steps(settings.folder)
    for row in (first, second):
        assert row["episodes"] == 4 and row["score"] == 0
        assert row["user/requests"] == row["user/replies"] == row["user/nonsense"] > 0
        assert row["user/tokens_in"] > row["user/tokens_out"] > 0
        assert "ending/error" not in row and row["episodes_failed"] == 0
    assert first["grad_norm"] > 0  # the prices of BAO tell the episodes apart
    check = rows(settings.folder)[0]
    assert check["kind"] == "eval" and check["eval_user/requests"] == check["eval_user/nonsense"] > 0
    file = settings.folder / "samples" / "grpo-000001.jsonl"
    turns = [turn for line in file.read_text().splitlines() for turn in json.loads(line)["turns"]]
    told = Counter(turn["feedback"] for turn in turns if turn["calls"])
    assert told.keys() <= {"Maybe.", "Not quite: 0.00 of 1."}
    assert sum(told.values()) == first["user/requests"] and not any(turn["reward"] for turn in turns)


def test_a_batch_of_one_does_not_lock_up_and_changes_no_number(turtle: Configure, tmp_path: Path) -> None:
    runs = [
        turtle("grpo.steps=1", folder=tmp_path / f"{size}", max_batch=size, deterministic=True)
        for size in (32, 1)
    ]
    for settings in runs:
        train_episodes(settings)
    assert rows(runs[0].folder) == rows(runs[1].folder)
    files = [settings.folder / "last/adapter_model.safetensors" for settings in runs]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_stopped_run_with_a_user_continues_bitwise(turtle: Configure, tmp_path: Path) -> None:
    user = {"kind": "engine", "model": "policy", "max_tokens": 4}
    options: dict[str, Any] = {"user": user, "deterministic": True}
    whole = turtle("eval.final=true", folder=tmp_path / "whole", **options)
    stopped = turtle("eval.final=true", "save_every=100", folder=tmp_path / "stopped", **options)
    train_episodes(whole)
    with pytest.raises(Stopped, match="after step 1, saved"):
        train_episodes(stopped, ui=Asks(1))
    train_episodes(stopped, resume=True)
    assert_equal(stopped.folder, whole.folder)


def judge(body: dict[str, Any]) -> str:
    """Agrees with every question, and with answers that hold a 2."""
    said = body["messages"][0]["content"]
    if "JSON list" not in said:
        return "Yes"
    answer = said.split("---")[1]
    wanted = re.search(r"JSON list of (\d+)", said)
    assert wanted is not None
    return json.dumps([float("2" in answer)] * int(wanted[1]))


def test_a_judge_behind_an_endpoint_rewards(turtle: Configure) -> None:
    with FakeEndpoint(otherwise=computed(judge)) as fake:
        user = {"kind": "endpoint", "model": "m", "base_url": fake.url}
        settings = turtle("grpo.batch_tasks=3", user=user)
        train_episodes(settings)
        asked = len(fake.requests)
    logged = rows(settings.folder)
    assert any(row["score"] > 0 for row in steps(settings.folder))
    assert all(row["user/nonsense"] == 0 for row in steps(settings.folder))
    assert total(logged, "user/requests") == asked > 0


def test_an_endpoint_that_fails_ends_its_episodes_alone(turtle: Configure) -> None:
    user = {"kind": "endpoint", "model": "m", "backoff": 0.0, "attempts": 1}
    with FakeEndpoint([dropped()] * 3, otherwise=computed(judge)) as fake:
        settings = turtle(user={**user, "base_url": fake.url})
        train_episodes(settings)
    logged = rows(settings.folder)
    assert total(logged, "ending/error") == total(logged, "user/connection_errors") == 3
    for row in steps(settings.folder):
        assert sum(count for name, count in row.items() if name.startswith("ending/")) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.user=null", "environment: gym.user: the turtle gym needs it"),
        ("environment.user=human", "environment.user: 'human' is not one of engine, endpoint"),
        ("environment.user={kind: engine, model: mine}", "environment.user engine: model 'mine'"),
        ("environment.user={kind: endpoint, model: m, api_key_env: NO_SUCH_KEY}", "NO_SUCH_KEY is not set"),
    ],
)
def test_a_user_that_cannot_be_is_refused_before_anything_is_written(
    override: str, message: str, turtle: Configure
) -> None:
    settings = turtle(override)
    with pytest.raises(ConfigError) as refused:
        train_episodes(settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not settings.folder.exists()


def test_a_user_needs_threads(turtle: Configure) -> None:
    with pytest.raises(ConfigError, match="a user is asked from threads"):
        turtle("environment.host.workers=processes")
