"""What tests of sessions share: trajectories, a sample that stops until it may go on, updates on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from proactor.engine import Engine, Group, Sample, Sampling, Session
from tests.engine.engines import TRAIN, drawn, load, outside, prompts

T = TypeVar("T")
PATIENCE = 60.0
DRAW = Sampling(max_tokens=5, ignore_eos=True, temperature=1.1)
OBSERVATIONS = [[90, 91, 92], [93, 94], [95], []]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own; nothing may hang."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def record(sample: Sample) -> tuple[Any, ...]:
    """Everything about a sample, to the bit."""
    return *drawn([Group(sample.prompt_ids, [sample])])[0], sample.mask, sample.policy_version, sample.noise


async def trajectory(
    session: Session, key: int, turns: int = 3, rest: Callable[[], Awaitable[None]] | None = None
) -> Sample:
    """A sample of several turns; ``rest`` stands for an environment that thinks."""
    sample = await session.sample(prompts(key + 1, shared=6)[key], DRAW, key=key)
    for turn in range(turns - 1):
        if rest is not None:
            await rest()
        await session.advance(sample, OBSERVATIONS[(key + turn) % 3], DRAW)
    return sample


async def one_by_one(engine: Engine, keys: range = range(5)) -> list[Sample]:
    async with engine.session() as session:
        return [await trajectory(session, key) for key in keys]


def deterministic(folder: Path, **changes: Any) -> Engine:
    return load(folder, deterministic=True, **changes)


class Held:
    """Settings of a long sample that stops in its mask, with ``tokens`` drawn, until it may go on."""

    def __init__(self, tokens: int, **changes: Any) -> None:
        self._loop, self._event, self._go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        self._tokens = tokens
        self.sampling = Sampling(max_tokens=110, ignore_eos=True, logit_mask=self._mask, **changes)

    def _mask(self, ids: list[int], position: int) -> None:
        if position == self._tokens:
            self._loop.call_soon_threadsafe(self._event.set)
            assert self._go.wait(PATIENCE)

    async def reached(self) -> None:
        await self._event.wait()

    def go_on(self) -> None:
        self._go.set()


def trainable() -> list[Group]:
    return [Group([1, 2], [outside([1, 2], [5 + i, 6], advantage=1.0 - 2 * i) for i in range(2)])]


class Updates:
    """A `logit_mask` that, at given lengths of a sample, has another thread train, and waits until the engine
    knows of it.
    """

    def __init__(self, engine: Engine, at: set[int]) -> None:
        self.engine, self.at = engine, at
        self.threads = ThreadPoolExecutor()
        self.trained: list[Future[Any]] = []

    def __call__(self, ids: list[int], position: int) -> None:
        if position in self.at:
            self.at.remove(position)
            known = threading.Event()
            post = self.engine._owner.post  # what `train` posts is taken up after this step

            def watched(function: Callable[[], Any]) -> Any:
                call = post(function)
                known.set()
                return call

            self.engine._owner.post = watched  # type: ignore[method-assign]
            self.trained.append(self.threads.submit(self.engine.train, trainable(), TRAIN))
            assert known.wait(60)
            self.engine._owner.post = post  # type: ignore[method-assign]
