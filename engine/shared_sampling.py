"""`SharedSampling`: ranks sample one list of prompts together, each as much as it comes to.

Every rank has the whole list and pulls units of it from a `SharedQueue` while its sampler has room. What a
rank yields is its own: groups that it completed first. The ranks meet at the start, where a rank of other
weights or prompts is refused; whenever one is silent, so that a dead one is named; and at the end.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import TypeVar

from proactor.engine.faults import fault_point
from proactor.engine.jobs import Job
from proactor.engine.meeting import Meeting, RankError
from proactor.engine.parallel import Parallel
from proactor.engine.prefix import common_prefix
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.submission import Submission
from proactor.engine.types import Group, one_line
from proactor.engine.work_queue import Pulse, SharedQueue, WorkQueue

T = TypeVar("T")

PHASE = "sampling"
BEAT = 0.5
"""Seconds between two beats of a rank's heart, at least."""
POLL = 0.05
"""Seconds between two looks at the queue by a rank that has nothing to do; others look at each beat."""


def expected_cost(jobs: Sequence[Job]) -> float:
    """Tokens of jobs on one rank: prompts, what these share once, and samples as long as allowed."""
    prompts = sorted(job.prompt_ids for job in jobs)
    shared = sum(common_prefix(a, b) for a, b in pairwise(prompts))
    return float(sum(map(len, prompts)) - shared + sum(job.sampling.n * job.limit for job in jobs))


def arriving(loop: SamplingLoop, submission: Submission) -> Iterator[Group]:
    """The groups of a submission as they end. Leaving the loop over them ends what still runs."""
    loop.submit(submission)
    try:
        for arrival in submission.arrivals:
            yield arrival.result()
    finally:
        loop.cancel(submission)


class SharedSampling:
    """One call of `Engine.sample_shared` on one of several ranks; iterate once.

    ``units``: the jobs of all ranks, by what stays on one rank. ``versions``: `Policy.versions`. ``events``
    counts ``late_groups``, sampled here and on a rank that was faster, and ``roll_calls``. ``idle``: as
    `Engine.sample_shared`.
    """

    def __init__(
        self,
        loop: SamplingLoop,
        parallel: Parallel,
        meeting: Meeting,
        units: Sequence[list[Job]],
        versions: str,
        events: Counter[str],
        idle: Callable[[], bool] | None = None,
    ) -> None:
        self._loop, self._parallel, self._meeting = loop, parallel, meeting
        self._units, self._versions, self._counts, self._idle = units, versions, events, idle
        self._rank = parallel.rank
        self._running: dict[int, Submission] = {}
        self._news: SimpleQueue[int | None] = SimpleQueue()  # a unit that ended, or None: there is room
        self._asked = False
        self._attended = 0
        self._pulse = Pulse(self._rank, parallel.world_size)
        self._next_beat = 0.0
        self._changed = time.monotonic()  # when the queue last did

    def __iter__(self) -> Iterator[Group]:
        with self._parallel.together(PHASE):
            queue = self._open()
            try:
                while not self._meet(queue.queue):
                    self._take_up(queue)
                    yield from self._wait(queue)
                    self._look(queue)
            finally:
                self._leave(queue)
        if self._rank == 0:
            self._at_store(queue.remove)

    # -- meetings ---

    def _open(self) -> SharedQueue:
        """The queue, once all ranks are here with the same prompts and weights."""
        plan = WorkQueue.deal([expected_cost(unit) for unit in self._units], self._parallel.world_size)
        jobs = [
            (
                job.prompt_ids,
                job.noise,
                job.limit,
                job.adapter,
                job.sampling.model_dump(exclude={"logit_mask"}),
            )
            for unit in self._units
            for job in unit
        ]
        digest = hashlib.blake2b(repr((plan.costs, jobs)).encode(), digest_size=16).digest()
        ranks = self._parallel.gather((self._versions, digest, self._meeting.queues), PHASE)
        versions, digests, numbers = zip(*ranks, strict=True)
        if len(set(versions)) > 1:
            raise RankError(f"{PHASE}: ranks came with weights of versions {', '.join(versions)}")
        if len(set(digests)) > 1:
            raise RankError(f"{PHASE}: ranks came with different prompts or settings")
        self._meeting.queues = max(numbers) + 1  # a call that failed early may not have counted everywhere
        name = f"{self._meeting.name}/queue/{max(numbers)}"
        return self._at_store(lambda: SharedQueue(self._meeting.store, name, self._rank, plan))

    def _meet(self, queue: WorkQueue) -> bool:
        """Answer a roll call, or meet because all is done; returns whether it is."""
        if not queue.finished and queue.calls <= self._attended:
            return False
        ranks = self._parallel.gather((queue.calls, queue.finished), PHASE)  # names who does not come
        self._attended = max(calls for calls, _ in ranks)
        self._pulse.met()
        self._changed = time.monotonic()
        return any(finished for _, finished in ranks)

    def _at_store(self, call: Callable[[], T]) -> T:
        """What ``call`` returns. Raises RankError, with the rank that took the store with it."""
        try:
            return self._meeting.wait_for(call, self._meeting.timeout)
        except (RuntimeError, TimeoutError) as error:
            self._parallel.gather((0, False), PHASE)  # names the rank, unless all are there
            raise RankError(f"{PHASE}: the ranks' store does not answer: {one_line(error)}") from error

    # -- work ---

    def _take_up(self, queue: SharedQueue) -> None:
        """Begin what this rank has on lease, give up what another one was faster at, ask for room."""
        for item in [item for item in self._running if item in queue.queue.done]:
            submission = self._running.pop(item)
            self._loop.cancel(submission)
            self._counts["late_groups"] += len(submission.jobs)
        for item in queue.queue.held(self._rank):
            if item not in self._running:
                fault_point("unit.leased")
                self._begin(item)
        if not self._asked and queue.queue.pull(self._rank) != queue.queue:
            self._asked = True
            self._loop.when_room(self._note_room)

    def _begin(self, item: int) -> None:
        submission = Submission(self._units[item])
        self._running[item] = submission
        self._loop.submit(submission)
        submission.arrivals[-1].add_done_callback(lambda _: self._news.put(item))

    def _note_room(self) -> None:
        """In the sampler's thread."""
        self._news.put(None)

    def _wait(self, queue: SharedQueue) -> Iterator[Group]:
        """Wait for news: pull where there is room, yield the groups of a unit that this rank completed."""
        idle = None if self._running or queue.queue.waiting else self._idle
        more = idle is not None and idle()
        try:
            item = self._news.get(timeout=BEAT if self._running else 0.0 if more else POLL)
        except Empty:
            return
        if item is None:
            self._asked = False
            self._at_store(lambda: queue.change(lambda work: work.pull(self._rank)))
        elif item in self._running:
            yield from self._complete(queue, item)

    def _complete(self, queue: SharedQueue, item: int) -> list[Group]:
        """The groups of a unit that ended here; none where another rank was faster."""
        groups = [arrival.result() for arrival in self._running.pop(item).arrivals]
        fault_point("unit.ended")
        work = self._at_store(lambda: queue.change(lambda work: work.complete(self._rank, item)))
        fault_point("unit.done")
        if work.done[item] != self._rank:
            self._counts["late_groups"] += len(groups)
            return []
        return sorted(groups, key=lambda group: group.index)

    def _look(self, queue: SharedQueue) -> None:
        """Look at the queue and the other hearts; call all together where one is silent, or nothing comes."""
        if self._running:
            fault_point("unit.running")
        now = time.monotonic()
        if self._running and now < self._next_beat:
            return
        before = queue.queue
        if self._at_store(queue.refresh) != before:
            self._changed = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT
        silent = self._pulse.beat(self._at_store(queue.beat))
        if not self._running and now - self._changed > self._meeting.timeout:
            silent += queue.queue.leases.values()  # their hearts may beat, but nothing comes of them
        if silent and not queue.queue.finished:
            self._counts["roll_calls"] += 1
            self._at_store(lambda: queue.change(lambda work: work.call(silent)))

    def _leave(self, queue: SharedQueue) -> None:
        """End what still runs. Where work is left, the others are called: this rank says why at a meeting."""
        for submission in self._running.values():
            self._loop.cancel(submission)
        if not queue.queue.finished and not self._meeting.lost:
            with suppress(RuntimeError, TimeoutError):
                self._meeting.wait_for(lambda: queue.change(lambda work: work.call()), self._meeting.timeout)
