"""What the tests of the learning benches share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import learning
from proactor.config_file import load_config
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
