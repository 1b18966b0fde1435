"""`Submission`: what one caller asks of the sampler at once, and how its groups come back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from proactor.engine.jobs import Job
from proactor.engine.types import EngineError, Group


@dataclass(slots=True, eq=False)
class Submission:
    """Jobs that are taken up together. Higher ``priority`` first; ``deadline``: a time of `time.monotonic`.

    ``arrivals``: a future for each job, filled in the order in which the groups end; an error fills the rest.
    ``parked_for``: the session that may continue the samples; their pages are kept for it. ``watch``: called
    in the engine's thread after each step in which the samples may have grown.
    """

    jobs: list[Job]
    priority: int = 0
    deadline: float = math.inf
    parked_for: int | None = None
    watch: Callable[[], None] | None = None
    arrivals: list[Future[Group]] = field(default_factory=list)
    ended: bool = False
    _count: int = 0

    def __post_init__(self) -> None:
        self.arrivals = [Future() for _ in self.jobs]

    def deliver(self, job: Job) -> None:
        """Hand a job's group to the caller."""
        group = Group(job.prompt_ids, job.samples, index=job.index)
        self._count += 1
        self.ended = self._count == len(self.jobs)
        self.arrivals[self._count - 1].set_result(group)

    def fail(self, error: BaseException) -> None:
        """End it with an error, for everything that has not arrived."""
        self.ended = True
        for arrival in self.arrivals[self._count :]:
            arrival.set_exception(error)


def time_limit(seconds: float | None, what: str) -> float:
    """The time of `time.monotonic` in so many seconds; None: never. Raises EngineError, beginning with
    ``what``, for anything else.
    """
    if seconds is None:
        return math.inf
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise EngineError(f"{what}: deadline {seconds!r} is not a number of seconds")
    return time.monotonic() + seconds


async def arrived(arrival: Future[Group]) -> Group:
    """Wait for an arrival, in whatever event loop runs here. Giving up the wait leaves it as it is."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(_: Future[Group]) -> None:
        with suppress(RuntimeError):  # the event loop has closed
            loop.call_soon_threadsafe(_resolve, woken)

    arrival.add_done_callback(wake)
    await woken
    return arrival.result()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
