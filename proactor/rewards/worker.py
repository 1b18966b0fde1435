"""A group reward at work in a training step: beside the sampling, in the event loop of a thread of its own,
or after it.

The loop lives as long as the run, so that connections are kept. Results are taken by the group's place, never
by the order in which they came, so timing changes no number.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from proactor.dialogue.candidates import Candidates, Stage
from proactor.rewards.group import GroupReward, Scored
from proactor.rewards.options import RewardError
from proactor.rewards.run import checked


class RewardWorker:
    """A `GroupReward` with the event loop it runs in. `close` ends the thread, if there is one."""

    def __init__(self, name: str, reward: GroupReward) -> None:
        self.name, self.reward = name, reward
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def round(self, stage: Stage) -> Round:
        """The scoring of one training step."""
        return Round(self, stage)

    def submit(self, work: Coroutine[Any, Any, Scored]) -> Future[Scored]:
        """Start ``work`` beside this thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="reward-worker", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Stop what still runs, and the thread."""
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Round:
    """Groups are added as they end, and scored by `finish`. Leaving the block early calls off what still
    runs.

    After `finish`: ``seconds`` between the first group handed over and the last one scored, ``waited`` of
    them in `finish`, and ``counters``, the reward's events of this round.
    """

    def __init__(self, worker: RewardWorker, stage: Stage) -> None:
        self._worker, self._reward, self._stage = worker, worker.reward, stage
        self._groups: dict[int, Candidates] = {}
        self._running: dict[int, Future[Scored]] = {}
        self._before = Counter(self._reward.counters)
        self._began: float | None = None
        self._ended = 0.0
        self.seconds = self.waited = 0.0
        self.counters: Counter[str] = Counter()

    def __enter__(self) -> Round:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._running.values():
            future.cancel()

    def add(self, place: int, group: Candidates) -> None:
        """Hand a group over; a concurrent reward begins with it at once."""
        self._groups[place] = group
        if self._reward.concurrent:
            self._began = time.perf_counter() if self._began is None else self._began
            future = self._worker.submit(self._reward.score(group, self._stage))
            future.add_done_callback(self._note)
            self._running[place] = future

    def _note(self, future: Future[Scored]) -> None:
        self._ended = max(self._ended, time.perf_counter())

    def finish(self) -> dict[int, Scored]:
        """Every group's scores by its place; None where the group is dropped. RewardError for scores that
        cannot be used.
        """
        began = time.perf_counter()
        places = sorted(self._groups)
        if self._reward.concurrent:
            late = not all(future.done() for future in self._running.values())
            found = [self._running[place].result() for place in places]
            self._ended = time.perf_counter() if late else self._ended
        else:
            self._began = began
            found = asyncio.run(
                self._reward.score_all([self._groups[place] for place in places], self._stage)
            )
            self._ended = time.perf_counter()
        self.waited = time.perf_counter() - began
        self.seconds = max(0.0, self._ended - (self._began or began)) if places else 0.0
        self.counters = Counter(self._reward.counters)
        self.counters.subtract(self._before)
        if len(found) != len(places):
            raise RewardError(f"reward {self._worker.name!r} scored {len(found)} groups of {len(places)}")
        return {
            place: self._checked(self._groups[place], scored)
            for place, scored in zip(places, found, strict=True)
        }

    def _checked(self, group: Candidates, scored: Scored) -> Scored:
        return None if scored is None else checked(self._worker.name, scored, group.texts)
