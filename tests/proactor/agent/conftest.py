"""A run whose tools are orders and coffee, and its agent, which the tests of conversations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.agent import Agent
from tests.proactor.agent.agents import CATALOG, load_agent, run_folder


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("talks") / "run", tiny_model, CATALOG)


@pytest.fixture(scope="module")
def base(run: Path) -> Agent:
    return load_agent(run, log=None, overrides=("engine.deterministic=false",))
