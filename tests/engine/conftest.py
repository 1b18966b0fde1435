"""Model folders that the engine tests share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import write_folder, write_text_folder
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without a tokenizer."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of bytes."""
    return write_text_folder(tmp_path_factory.mktemp("tiny-text") / "model")


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of words and a chat template with tools; 1,024 tokens of context."""
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model", context=1024)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("plain") / "model"
    return folder, save_tiny(folder, "qwen2", torch.bfloat16)


@pytest.fixture
def broken(plain: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the plain folder, to be broken."""
    return Path(shutil.copytree(plain[0], tmp_path / "broken"))
