"""What the tests of the learning benches share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import learning
from proactor.config_file import load_config, load_run
from proactor.episode_config import EpisodeConfig
from proactor.progress import Quiet
from proactor.training.episodes_loop import train_episodes
from proactor.training.episodes_model import build_episode_model
from proactor.training.loop import train


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs train in this process; the names of those that did."""
    names: list[str] = []

    def run(command: list[str], check: bool) -> None:
        at = command.index("train")
        overrides = [part for part in command[at + 2 :] if not part.startswith("--")]
        settings = load_config(command[at + 1], overrides)
        names.append(settings.name)
        train(settings, resume="--resume" in command, fresh="--fresh" in command)

    monkeypatch.setattr(learning, "subprocess", SimpleNamespace(run=run))
    return names


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands on environments run in this process; what they were, with the run's name."""
    commands: list[str] = []

    def run(command: str, file: Path, overrides: Sequence[str], *flags: str) -> None:
        settings = load_run(file, overrides)
        assert isinstance(settings, EpisodeConfig) and settings.pretrain is not None
        commands.append(f"{command} {settings.name}")
        if command == "pretrain":
            build_episode_model(settings, settings.pretrain, Quiet())
        else:
            train_episodes(settings, resume="--resume" in flags, fresh="--fresh" in flags)

    monkeypatch.setattr(learning, "run_command", run)
    return commands
