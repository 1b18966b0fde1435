"""The guessing world of `episodes`, and the model that plays it, which tests of its runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proactor.environments.gyms import catalog
from proactor.training.episodes import Arena
from tests.proactor.training.episodes import GuessGym, config, guess_folder


@pytest.fixture(scope="module")
def guess() -> Iterator[None]:
    """The gym ``guess`` is known while a module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.GYMS, "guess", GuessGym)
        yield


@pytest.fixture(scope="session")
def guess_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guess_folder(tmp_path_factory.mktemp("guess") / "model")


@pytest.fixture(scope="module")
def arena(guess: None, guess_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """An arena whose model was not trained; some tasks break, and the reward line is shown."""
    settings = config(tmp_path_factory.mktemp("arena"), guess_model)
    broken = settings.environment.model_copy(
        update={
            "options": {"broken": 8},
            "host": settings.environment.host.model_copy(update={"show_reward": True}),
        }
    )
    return Arena.open(settings.model_copy(update={"environment": broken}))
