"""Model folders that the engine tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.engines import write_folder, write_text_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without a tokenizer."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of bytes."""
    return write_text_folder(tmp_path_factory.mktemp("tiny-text") / "model")
