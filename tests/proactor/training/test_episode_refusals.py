"""Configs and commands of a run in an environment that are refused, each in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proactor.config_base import ConfigError
from proactor.config_file import load_config
from proactor.engine import ProactorError
from proactor.training.episodes_loop import train_episodes
from tests.proactor.commands.calls import refusal
from tests.proactor.training.episodes import config
from tests.proactor.training.test_loop import begun, contents

pytestmark = pytest.mark.usefixtures("guess")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.options.user_prise=1", "method.options: unknown key 'user_prise' of bao (known: user_price"),
        ("method.options.user_price=-1", "method.options: user_price: "),
        ("environment.options.trian=3", "environment: gym.trian: unknown key of the guess gym (did you mean"),
        (
            "environment.options.train=[3]",
            "environment: gym.train: Input should be a valid integer, got [3] (the guess",
        ),
        ("environment.dev=16", "leaves none to train on"),
        ("grpo=null", "neither sft nor grpo"),
        ("sft.lr=1e-3", "guess has no symbolic expert"),
        (
            "method={name: agent_omit, options: {cold_tasks: 24}}",
            "method.options.cold_tasks: 24, and sft=null: what the cold start tries is learned in stage A",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    override: str, message: str, guess_model: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, guess_model, override)
    with pytest.raises(ConfigError) as refused:
        train_episodes(settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not settings.folder.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("start=no/adapter", "no/adapter"),
        ("model=no/model", "no/model"),
        ("environment.options.x=1", "gym.x"),
    ],
)
def test_a_run_is_not_given_up_for_one_that_cannot_begin(
    override: str, message: str, guess_model: Path, tmp_path: Path
) -> None:
    run = begun(config(tmp_path, guess_model))
    before, wrong = contents(run.folder), config(tmp_path, guess_model, override)
    with pytest.raises(ProactorError, match=re.escape(message)):
        train_episodes(wrong, fresh=True)
    assert contents(run.folder) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("environment.gim=x", "unknown key 'environment.gim' (did you mean 'gym'?)"),
        ("environment.gym=chess", "environment.gym: 'chess' is not one of agentcf, function, "),
        ("environment.play.sampling.temperature=0", "environment.play: temperature 0 is greedy"),
        ("environment.play.sampling.n=2", "the episodes of a group are grpo.n"),
        ("environment.path=/nowhere", "environment.path: no such file or folder: /nowhere"),
        ("method.name=ppo", "method.name: "),
        ("grpo.advantages=verl", "grpo.advantages: the method normalises"),
        ("data.source=sgd", "unknown key 'data'"),
        ("eval.metric=user_actions", "'user_actions' is not one of score, "),
    ],
)
def test_a_config_that_cannot_be_is_one_line(
    override: str, message: str, guess_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        config(tmp_path, guess_model, override)
    line = str(refused.value)
    assert message in line and "\n" not in line and f"override {override!r}" in line


def test_commands_of_dialogues_refuse_an_environment(
    guess_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(tmp_path, guess_model)
    file = tmp_path / "tiny.yaml"
    with pytest.raises(ConfigError, match="environment: a run in an environment"):
        load_config(file)
    assert "--overfit learns dialogues" in refusal(capsys, "train", file, "--overfit", 1)
