"""A tiny model that all tests of runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proactor.runs import tiny_folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))
