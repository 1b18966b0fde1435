"""A server of a model that chats, and the environments of other projects, whose pins exclude ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import Engine
from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.proactor.server.served import Served

KEY = "a-key-of-the-first-user"

Client = Callable[..., Any]


@pytest.fixture(scope="session")
def client(repo_root: Path) -> Client:
    """Runs a script of this folder in the environment of ``neighbour``; returns what its last line says."""

    def run(neighbour: str, script: str, *arguments: object) -> Any:
        home = Path(os.environ.get("NEIGHBOURS", repo_root / ".venv-neighbours")) / neighbour
        if not (home / "bin" / "python").exists():
            pytest.skip(f"no environment in {home}: make test-neighbours builds it")
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else asked for over the network
        done = subprocess.run(
            [home / "bin" / "python", Path(__file__).with_name(script), *map(str, arguments)],
            env={**os.environ, **quiet, "SERVER_KEY": KEY, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("neighbour") / "model", context=1024)


@pytest.fixture(scope="session")
def engine(folder: Path) -> Iterator[Engine]:
    engine = load(folder, deterministic=True, kv_tokens=4096)
    yield engine
    engine.release()


@pytest.fixture(scope="session")
def served(engine: Engine) -> Iterator[Served]:
    """The engine's adapter as ``policy``, for who has the key."""
    with Served(engine, adapter="policy", keys=(KEY,)) as served:
        yield served
