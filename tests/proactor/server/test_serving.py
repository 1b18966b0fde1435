"""How a body is read, and how a swap waits: what a test from outside sees only by luck."""

from __future__ import annotations

import asyncio
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from proactor.engine.stops import BytePieces
from proactor.engine.text_stream import TextPieces
from proactor.server import models as models_module
from proactor.server.app import create_app
from proactor.server.keys import Keys
from proactor.server.limits import Limits
from proactor.server.models import Models
from proactor.server.refusals import Refused
from proactor.server.run import ServeError, bind, make_room, run
from proactor.server.serving import DISCARDED, Serving
from tests.proactor.server.served import Served

MOST, PIECE = 1 << 16, 1 << 12


class Piece(bytes):
    """A piece of a body; all that exist are counted."""

    held = most_held = 0

    def __init__(self, *_: Any) -> None:
        Piece.held += len(self)
        Piece.most_held = max(Piece.most_held, Piece.held)

    def __del__(self) -> None:
        Piece.held -= len(self)


def test_of_a_body_that_is_too_large_no_more_is_held_than_may_come(server: Served) -> None:
    serving = Serving(server.engine, Models(server.engine, "tiny"), Limits(max_body=MOST), Keys())
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += PIECE
        return {"type": "http.request", "body": Piece(PIECE), "more_body": True}

    headers = [(b"content-type", b"application/json")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(Refused, match=f"a body of more than {MOST} bytes"):
        asyncio.run(serving.fields(request))
    assert sent == DISCARDED * MOST + PIECE, "read on for the client's sake, and then no more"
    assert MOST <= Piece.most_held <= MOST + 2 * PIECE


def test_a_port_that_was_taken_while_the_model_loaded(server: Served) -> None:
    """Two may bind one port as long as neither listens."""
    first = bind("127.0.0.1", 0, False)
    port = first.getsockname()[1]
    second = bind("127.0.0.1", port, False)
    first.listen()
    with first, pytest.raises(ServeError, match=f"127.0.0.1:{port}: Address already in use; stop"):
        run(create_app(server.serving), server.serving, second)
    assert second.fileno() == -1


def test_a_server_may_open_a_file_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda what: allowed["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: allowed.update(now=pair))
    make_room(Limits(max_concurrent=16))
    assert allowed["now"] == (1024, 4096)
    make_room(Limits(max_concurrent=256))
    assert allowed["now"] == (1280, 4096)
    with pytest.raises(ServeError, match=r"--max-concurrent 2000: takes up to 8000 .* may open 4096 files"):
        make_room(Limits(max_concurrent=2000))
    assert allowed["now"] == (1280, 4096)


class Recorder:
    """An engine whose adapter is loaded at once."""

    adapters = ("policy",)

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_adapter(self, folder: Path) -> None:
        self.loaded.append(folder.name)


@pytest.mark.parametrize("call", ["load", "unload"])
def test_a_swap_waits_for_who_holds_the_adapter_and_has_not_begun(tmp_path: Path, call: str) -> None:
    """Its prompt is still encoded: the engine knows nothing of it, and would swap under it."""
    (tmp_path / "two").mkdir()
    engine: Any = Recorder()

    async def swap() -> None:
        models = Models(engine, "base", "one", tmp_path)
        async with models.use("one") as on, models.use("one"):
            work = models.load("two", "two") if call == "load" else models.unload("one")
            swapping = asyncio.create_task(work)
            done, _ = await asyncio.wait([swapping], timeout=0.2)
            assert on and not done and not engine.loaded and models.adapter == "one"
            with pytest.raises(Refused, match="an adapter is being loaded"):
                await models.use("one").__aenter__()
            async with models.use("base") as base:
                assert not base
            with pytest.raises(Refused, match="an adapter is being loaded"):
                await models.load("two", "two")
        await asyncio.wait_for(swapping, 30)
        assert (engine.loaded, models.adapter) == ((["two"], "two") if call == "load" else ([], None))

    asyncio.run(swap())


def test_a_swap_waits_for_the_models_own_answers_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would wait for them too, without an end, and everybody behind it."""
    (tmp_path / "two").mkdir()
    engine: Any = Recorder()

    async def swap() -> None:
        models = Models(engine, "base", "one", tmp_path)
        async with models.use("base"):
            monkeypatch.setattr(models_module, "PATIENCE", 0.05)
            with pytest.raises(Refused, match=r"longer than 0\.05 s") as refused:
                await asyncio.wait_for(models.load("two", "two"), 30)
            assert refused.value.status == 409 and not engine.loaded
            async with models.use("one") as on, models.use("base"):
                assert on
            monkeypatch.setattr(models_module, "PATIENCE", 30.0)
            swapping = asyncio.create_task(models.load("two", "two"))
            behind = asyncio.create_task(models.use("base").__aenter__())
            done, _ = await asyncio.wait([swapping, behind], timeout=0.2)
            assert not done
        assert await asyncio.wait_for(swapping, 30) == "one" and engine.loaded == ["two"]
        assert await asyncio.wait_for(behind, 30) is False

    asyncio.run(asyncio.wait_for(swap(), 60))


def test_the_event_loop_decodes_no_log_probabilities(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of tokens with twenty others each would hold up every client; and each is decoded once."""
    shown: list[tuple[threading.Thread, int]] = []
    decoded: list[tuple[int, int]] = []
    own, missing = TextPieces.own, BytePieces.__missing__

    def spy(self: TextPieces, token: int) -> bytes:
        shown.append((threading.current_thread(), token))
        return own(self, token)

    def spy_missing(self: BytePieces, token: int) -> bytes:
        decoded.append((id(self), token))
        return missing(self, token)

    monkeypatch.setattr(TextPieces, "own", spy)
    monkeypatch.setattr(BytePieces, "__missing__", spy_missing)
    monkeypatch.setattr(server.serving, "texts", TextPieces(server.engine.tokenizer))
    more = {"model": "tiny", "max_tokens": 12, "seed": 3, "temperature": 1.0}
    client = server.openai()
    for _ in range(2):
        client.completions.create(prompt="Is it?", logprobs=4, **more)  # type: ignore[call-overload]
    assert len({token for _, token in shown}) > 12 and decoded
    for _ in range(2):
        ask = {"messages": [{"role": "user", "content": "Is it?"}], "logprobs": True, "top_logprobs": 4}
        client.chat.completions.create(**ask, **more)  # type: ignore[call-overload]
    assert server.thread not in {thread for thread, _ in shown}
    assert len(decoded) == len(set(decoded))
