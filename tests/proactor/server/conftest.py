"""A server on a port of its own, and its engine, which the tests ask beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.proactor.server.served import Served


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("served") / "model", context=1024)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, chat_folder: Path) -> Path:
    """Two adapters, ``one`` and ``two``, in a folder."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        engine = load(chat_folder, stir=False)
        from tests.engine.engines import shake

        shake(engine, seed)
        engine.save_adapter(folder / name)
        engine.release()
    return folder


@pytest.fixture(scope="session")
def server(chat_folder: Path, adapters: Path) -> Iterator[Served]:
    """One server for all tests that leave it as it was: a model ``tiny`` and its adapter ``one``."""
    engine = load(chat_folder, stir=False, deterministic=True, kv_tokens=4096)
    engine.load_adapter(adapters / "one")
    with Served(engine, adapter="one", root=adapters) as served:
        yield served
    engine.release()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the server, it holds no place and no page afterwards."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").wait_idle()
