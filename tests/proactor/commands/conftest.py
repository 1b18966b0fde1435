"""A tiny chat model that tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.chat_templates import save_chat_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, where a module has no other model."""
    return save_chat_model(tmp_path_factory.mktemp("chat") / "tiny", context=1024)
