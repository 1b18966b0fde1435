"""`RewardWorker`: a group reward at work in a training step, overlapping the sampling where it can.

A concurrent reward runs in an event loop on a thread of its own. The loop lives as long as the run, so that
connections are kept. Scores go by the group's place, never by arrival, so timing changes no number.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from proactor.dialogue.candidates import Candidates
from proactor.event_loop import BackgroundLoop, run_to_end
from proactor.rewards.call import validate_scores
from proactor.rewards.group import GroupReward, GroupScores
from proactor.rewards.options import RewardError
from proactor.rewards.schedule import TrainingProgress


class RewardWorker:
    """A `GroupReward` with its event loop. Call `close` at the end: it stops the thread, if there is one."""

    def __init__(self, name: str, reward: GroupReward) -> None:
        self.name, self.reward = name, reward
        self._loop = BackgroundLoop("reward-worker")

    def round(self, progress: TrainingProgress) -> Round:
        """The scoring of one training step."""
        return Round(self, progress)

    def submit(self, work: Coroutine[Any, Any, GroupScores]) -> Future[GroupScores]:
        """Start ``work`` on the worker's thread."""
        return self._loop.submit(work)

    def close(self) -> None:
        """Cancel what still runs, and stop the thread."""
        self._loop.close()


class Round:
    """The scoring of one training step: `add` groups as they end, then `finish`.

    A context manager: leaving the block early cancels what still runs. After `finish`: ``seconds`` from the
    first group added to the last one scored, ``waited``, the seconds spent in `finish`, and ``counters``, the
    reward's events of this round.
    """

    def __init__(self, worker: RewardWorker, progress: TrainingProgress) -> None:
        self._worker, self._reward, self._progress = worker, worker.reward, progress
        self._groups: dict[int, Candidates] = {}
        self._running: dict[int, Future[GroupScores]] = {}
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
        """Add the group at ``place`` of the step; a concurrent reward begins to score it at once."""
        self._groups[place] = group
        if self._reward.concurrent:
            self._began = time.perf_counter() if self._began is None else self._began
            future = self._worker.submit(self._reward.score(group, self._progress))
            future.add_done_callback(self._note_end)
            self._running[place] = future

    def _note_end(self, future: Future[GroupScores]) -> None:
        self._ended = max(self._ended, time.perf_counter())

    def ready(self) -> dict[int, GroupScores]:
        """The scores of every group added so far, once all have them; else, and for a reward that scores
        after sampling, nothing. Raises as `finish`.
        """
        if not all(future.done() for future in self._running.values()):
            return {}
        return {
            place: self._validate(self._groups[place], future.result())
            for place, future in self._running.items()
        }

    def finish(self) -> dict[int, GroupScores]:
        """Wait for all scores: those of every group by its place, None where the group is dropped.

        Raises RewardError for a wrong number of scores and for one that is not a finite number.
        """
        began = time.perf_counter()
        places = sorted(self._groups)
        if self._reward.concurrent:
            late = not all(future.done() for future in self._running.values())
            scores = [self._running[place].result() for place in places]
            self._ended = time.perf_counter() if late else self._ended
        else:
            self._began = began
            groups = [self._groups[place] for place in places]
            scores = run_to_end(self._reward.score_all(groups, self._progress))
            self._ended = time.perf_counter()
        self.waited = time.perf_counter() - began
        self.seconds = max(0.0, self._ended - (self._began or began)) if places else 0.0
        self.counters = Counter(self._reward.counters)
        self.counters.subtract(self._before)
        if len(scores) != len(places):
            raise RewardError(f"reward {self._worker.name!r} scored {len(scores)} groups of {len(places)}")
        return {
            place: self._validate(self._groups[place], group_scores)
            for place, group_scores in zip(places, scores, strict=True)
        }

    def _validate(self, group: Candidates, scores: GroupScores) -> GroupScores:
        return None if scores is None else validate_scores(self._worker.name, scores, group.texts)
