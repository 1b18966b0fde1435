"""`SamplingLoop`: the sampler, always open. Whoever comes is served by the same steps.

Callers submit from any thread. In the owner's thread (`Owner`) submissions join the scheduler's waiting line
while it is shorter than ``max_waiting``; the others wait before it, higher priority first. A call that
changes the weights takes its place among them: it waits until what came before it has ended, under the
weights that it began with, and what comes after it waits for the new ones. An update waits only for samples
that went on through `EngineConfig.max_staleness` updates already; the others go on through this one.

Only a request's mask runs here of the callers' code. What it raises ends its own submission. A step that
fails ends everything that is in flight, with the same error. What fails between steps leaves nobody waiting:
it ends everything, and the loop takes no more.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from proactor.engine.jobs import Job
from proactor.engine.owner import Call, Owner
from proactor.engine.policy import Policy
from proactor.engine.step import Ended
from proactor.engine.submission import Submission
from proactor.engine.types import EngineError, FinishReason, one_line

T = TypeVar("T")

RESERVE = 4
"""Requests that may wait where there is still room for more: what ends is then followed at once."""


@dataclass(slots=True, eq=False)
class _Change:
    """A call that changes the weights, or takes the cache's memory. ``update``: samples in flight may go on
    through it.
    """

    call: Call[Any]
    update: bool


class SamplingLoop:
    """Submissions and changes of weights, in order, over one policy's sampler."""

    def __init__(self, owner: Owner, policy: Policy, max_waiting: int) -> None:
        self._owner, self._policy, self._max_waiting = owner, policy, max_waiting
        self._line: deque[Submission | _Change] = deque()
        self._live: dict[int, tuple[Submission, Job]] = {}  # by request id
        self._timed: list[Submission] = []  # those with a deadline
        self._watched: list[Submission] = []
        self._askers: deque[Callable[[], None]] = deque()  # who waits for room
        self._closed: EngineError | None = None  # why nothing is taken any more

    # -- from any thread ---

    def submit(self, submission: Submission) -> None:
        """Sample the jobs of a submission; its arrivals tell. Raises EngineError from inside a step."""
        if self._owner.inside:
            raise EngineError(
                "sample: called from inside the engine (a logit_mask or a loss), which would wait for itself"
            )
        if submission.jobs:
            self._owner.post(partial(self._enter, submission))

    def cancel(self, submission: Submission) -> None:
        """End a submission: its samples end as they are, with finish reason ``cancelled``."""
        if not submission.ended and self._owner.alive:
            self._owner.post(partial(self._end, submission, "cancelled"))

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, in the owner's thread, once hardly anything that was submitted waits to begin."""

        def enter() -> None:
            self._askers.append(tell)
            self._tell_room()

        self._owner.post(enter)

    def change(self, function: Callable[[], T], update: bool = False) -> T:
        """Run ``function``, which changes the weights, once all that was submitted before has ended, or, for
        an ``update``, may go on through it.

        From inside a step it runs at once: the policy refuses it there.
        """
        return function() if self._owner.inside else self.begin(function, update).wait()

    def begin(self, function: Callable[[], T], update: bool = False) -> Call[T]:
        """As `change`, without waiting. What is submitted after it waits for its end."""
        call = Call(function)
        self._owner.post(partial(self._enter, _Change(call, update)))
        return call

    def forget(self, session: int) -> None:
        """Let go of the pages that were kept for a session."""
        if self._owner.alive:
            self._owner.post(partial(self._policy.forget, session))

    def close(self, error: EngineError) -> None:
        """End everything with an error, which whatever comes later gets too."""
        self._closed = error  # first: a thread that starts after the next line takes nothing up
        if self._owner.alive:
            self._owner.call(partial(self._end_all, error))

    # -- in the owner's thread ---

    def _tell_room(self) -> None:
        waiting = self._policy.ready_sampler().scheduler.waiting if self._live else 0
        if not self._line and waiting <= RESERVE:
            while self._askers:
                self._askers.popleft()()

    def _end_all(self, error: EngineError) -> None:
        for entry in self._line:
            _refuse(entry, error)
        self._line.clear()
        self._fail_all(error)
        self._tell_room()  # whoever then submits is told

    def _broke(self, error: BaseException) -> None:
        """`_advance` raised: what it left half done is unknown."""
        what = f"{type(error).__name__}: {one_line(error)}"
        closed = EngineError(f"sampling failed: {what}; load another engine")
        closed.__cause__ = error
        self._closed = closed
        self._end_all(closed)

    def _enter(self, entry: Submission | _Change) -> None:
        """Into the line: behind its own priority, but never before a change of weights."""
        if self._closed is not None:
            _refuse(entry, self._closed)
            return
        at = len(self._line)
        if isinstance(entry, Submission):
            while at and isinstance(ahead := self._line[at - 1], Submission):
                if ahead.priority >= entry.priority:
                    break
                at -= 1
            if entry.deadline < math.inf:
                self._timed.append(entry)
            if entry.watch is not None:
                self._watched.append(entry)
        self._line.insert(at, entry)
        self._owner.pursue(self._advance, self._broke)

    def _advance(self) -> bool:
        """One step of the sampler, with what may join it. False when there is nothing more to do."""
        self._end_late()
        self._admit()
        if self._live:
            self._step()
        if self._askers:
            self._tell_room()
        return bool(self._live or self._line)

    def _admit(self) -> None:
        while self._line:
            entry = self._line[0]
            if isinstance(entry, Submission):
                if self._live and self._policy.ready_sampler().scheduler.waiting >= self._max_waiting:
                    return
                self._line.popleft()
                self._begin(entry)
            elif not self._live:
                self._line.popleft()
                entry.call()
            elif entry.update and self._policy.may_renew(job for _, job in self._live.values()):
                with self._policy.renewing():
                    self._line.popleft()  # here: if nothing can be paused it is refused with the others
                    entry.call()
            else:
                return

    def _begin(self, submission: Submission) -> None:
        try:
            sampler = self._policy.ready_sampler()
            for job in submission.jobs:
                self._policy.label(job)
                self._live[sampler.add(job, submission.priority)] = submission, job
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            self._fail(submission, error)

    def _step(self) -> None:
        sampler = self._policy.ready_sampler()
        try:
            ended = sampler.step()
        except BaseException as error:  # noqa: BLE001 - raised by the callers
            sampler.reset()
            self._fail_all(error)
            return
        for request, raised in sampler.take_failures():  # before its last token ends it
            if request in self._live:
                self._fail(self._live[request][0], raised)
        for end in ended:
            self._finish(end)
        if self._watched:
            self._tell_watchers()

    def _tell_watchers(self) -> None:
        self._watched = [submission for submission in self._watched if not submission.ended]
        for watch in {submission.watch for submission in self._watched}:
            if watch is not None:
                watch()

    def _finish(self, end: Ended) -> None:
        if end.request_id not in self._live:  # it failed, in this step
            return
        submission, _ = self._live[end.request_id]
        try:
            job = self._policy.ready_sampler().finish(end)
        except EngineError as error:  # the tokenizer's, about a text
            self._fail(submission, error)
            return
        if end.last:
            self._deliver(submission, job)
            del self._live[end.request_id]

    def _deliver(self, submission: Submission, job: Job) -> None:
        if submission.parked_for is not None:
            self._policy.park(submission.parked_for, job)
        submission.deliver(job)

    # -- ends before their time ---

    def _end_late(self) -> None:
        if not self._timed:
            return
        now = time.monotonic()
        for submission in self._timed:
            if submission.deadline <= now:
                self._end(submission, "deadline")
        self._timed = [submission for submission in self._timed if not submission.ended]

    def _end(self, submission: Submission, reason: FinishReason) -> None:
        """End all samples of a submission as they are."""
        if submission.ended:
            return
        try:
            for job in self._take_out(submission):
                if not job.samples:  # not begun
                    self._policy.label(job)
                self._policy.ready_sampler().cut(job, reason)
                self._deliver(submission, job)
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            submission.fail(error)

    def _take_out(self, submission: Submission) -> list[Job]:
        """Remove what is left of a submission, waiting or running; returns its jobs that have not ended."""
        if submission in self._line:
            self._line.remove(submission)
            return submission.jobs
        requests = [request for request, (owner, _) in self._live.items() if owner is submission]
        jobs = [self._live.pop(request)[1] for request in requests]
        for request in requests:
            self._policy.ready_sampler().abort(request)
        return jobs

    def _fail(self, submission: Submission, error: BaseException) -> None:
        if not submission.ended:
            submission.fail(error)  # first: nothing that goes wrong below may keep it from its caller
            self._take_out(submission)

    def _fail_all(self, error: BaseException) -> None:
        for submission in {id(s): s for s, _ in self._live.values()}.values():
            submission.fail(error)
        self._live.clear()


def _refuse(entry: Submission | _Change, error: EngineError) -> None:
    if isinstance(entry, Submission):
        entry.fail(error)
    else:
        entry.call.refuse(error)
