"""What tests of runs and of judges share: a tiny model, and how many rows are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proactor.engine import logprobs
from tests.proactor.runs import tiny_folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scored_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass that scores."""
    rows: list[int] = []
    whole = logprobs.tree_logprobs

    def counted(decoder: Any, tree: Any) -> Any:
        rows.append(tree.rows)
        return whole(decoder, tree)

    monkeypatch.setattr(logprobs, "tree_logprobs", counted)
    return rows
