"""What goes wrong beside the steps, and the end of an engine: whoever waits or comes later is answered."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, EngineError, Sampling
from proactor.engine.jobs import Job
from proactor.engine.submission import Submission
from tests.engine.engines import TRAIN, idle, load
from tests.engine.sessions import PATIENCE, Held, run, trainable

SHORT, LONG = Sampling(max_tokens=3, ignore_eos=True), Sampling(max_tokens=9, ignore_eos=True)


def submission(engine: Engine) -> Submission:
    """A request that nobody has sent yet."""
    return engine._submission([[1, 2, 3]], SHORT, None)


# -- a text that the tokenizer cannot decode ---


@pytest.mark.parametrize("n", [1, 3])
def test_a_text_that_cannot_be_decoded_ends_its_own_request(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    engine = load(text_folder)
    decode = engine.tokenizer.decode

    def broken(ids: list[int], **options: Any) -> str:
        if len(ids) == SHORT.max_tokens:
            raise RuntimeError("no such token")
        text: str = decode(ids, **options)
        return text

    monkeypatch.setattr(engine.tokenizer, "decode", broken)

    async def draw() -> None:
        async with engine.session() as session:
            good = asyncio.create_task(session.sample([1, 2], LONG, key=1))
            with pytest.raises(EngineError, match=r"^the tokenizer cannot decode: RuntimeError: no such tok"):
                async with engine.draw([[1, 2]], SHORT.model_copy(update={"n": n})) as drawing:
                    await drawing.groups()
            assert len((await good).token_ids) == 9
            assert len((await session.sample([1, 2], LONG)).token_ids) == 9

    run(draw())
    assert idle(engine)


def test_a_request_that_cannot_be_set_up_leaves_nothing_behind(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(text_folder)
    engine.sample([[1]], SHORT)

    def broken(stop: tuple[str, ...]) -> None:
        raise RuntimeError("no search")

    async def draw() -> None:
        async with engine.session() as session:
            with monkeypatch.context() as patch:
                patch.setattr(engine._policy.ready_sampler()._stops, "search", broken)
                with pytest.raises(RuntimeError, match="no search"):
                    await session.sample([1, 2], Sampling(stop=("a",)))
            assert len((await session.sample([1, 2], SHORT)).token_ids) == 3

    run(draw())
    assert idle(engine)


# -- what fails between the steps ---


def test_what_fails_between_steps_is_told_to_all_and_refuses_what_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, room = load(folder), threading.Event()
    words = r"^sampling failed: ZeroDivisionError: no luck; load another engine$"

    def park(session: int, job: Job) -> None:
        raise ZeroDivisionError("no luck")

    async def draw() -> None:
        async with engine.session() as session:
            held = Held(1)
            in_flight = asyncio.create_task(session.sample([1, 2], held.sampling))
            await held.reached()
            monkeypatch.setattr(engine._policy, "park", park)
            ends = asyncio.create_task(session.sample([1, 2], SHORT))
            await asyncio.sleep(0)  # it has asked
            change, waits = engine._loop.begin(lambda: None), submission(engine)
            engine._loop.submit(waits)
            engine._loop.when_room(room.set)  # there is none before the change has run
            held.go_on()
            for task in (in_flight, ends):
                with pytest.raises(EngineError, match=words) as caught:
                    await task
                assert isinstance(caught.value.__cause__, ZeroDivisionError)
            for answer in (change.outcome, waits.arrivals[0]):
                with pytest.raises(EngineError, match=words):
                    answer.result(PATIENCE)
            assert room.wait(PATIENCE)
            with pytest.raises(EngineError, match=words):
                await session.sample([1, 2], SHORT)

    run(draw())
    for use in (lambda: engine.sample([[1]], SHORT), lambda: engine.train(trainable(), TRAIN)):
        with pytest.raises(EngineError, match=words):
            use()
    assert torch.isfinite(engine.logprobs([[1, 2]])[0]).all() and engine.state_dict()
    engine.release()
    with pytest.raises(EngineError, match="released"):
        engine.sample([[1]], SHORT)


# -- release ---


@pytest.mark.parametrize("used", [True, False])
def test_what_is_posted_while_an_engine_is_released_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    engine = load(folder, stir=used)
    if used:
        engine.sample([[1]], SHORT)
    late, changes, stop = submission(engine), [], engine._owner.stop

    def from_another_thread() -> None:
        engine._loop.submit(late)
        changes.append(engine._loop.begin(lambda: None))
        stop()

    monkeypatch.setattr(engine._owner, "stop", from_another_thread)
    engine.release()
    for answer in (late.arrivals[0], changes[0].outcome):
        with pytest.raises(EngineError, match=r"^this engine was released; load another one$"):
            answer.result(PATIENCE)
