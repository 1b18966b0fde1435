"""Which waiting request begins next, and whether there is room for it.

A request is admitted when the pages of its prompt and of one fork are there beyond what running work may
still allocate. A request that does not fit as a whole is split: one of its forks stays held until all have
begun, so every request ends. While one is split, another is admitted only if it fits as a whole on top of it:
otherwise many prompts would be held for few sequences.
"""

from __future__ import annotations

from collections.abc import Iterator

from proactor.engine.kv import Copy, PagePool
from proactor.engine.parking import Parking
from proactor.engine.prefix import Match
from proactor.engine.running import AdmittedRequest, Running
from proactor.engine.step import Request
from proactor.engine.waiting import WaitingLine


class Admission:
    """Takes requests out of the waiting line.

    Counters: ``admitted`` requests, ``recomputed`` prompt tokens: known before, but their pages had gone.
    """

    def __init__(self, pool: PagePool, parking: Parking, running: Running) -> None:
        self.pool, self.parking, self.running = pool, parking, running
        self.line = WaitingLine(pool)
        self.admitted = 0
        self.recomputed = 0
        self._stuck = False  # the line was tried in vain, and nothing has changed since

    def changed(self) -> None:
        """Something arrived, ended or was computed: the line is worth another try."""
        self._stuck = False

    def admit(self, max_seqs: int, copies: list[Copy]) -> Iterator[AdmittedRequest]:
        """Admit requests one by one while fewer than ``max_seqs`` samples are admitted and there is room."""
        at, late = 0, 0 if self._stuck else self.running.late()
        room = 0 if self._stuck else self.pool.available - self.running.promised() - late
        while not self._stuck:
            ready = self.line.ready(at) if self.running.samples < max_seqs else None
            if ready is None:
                break
            at, request, match = ready
            held = self.running.fork_pages(request, last=request.n == 1)
            more = (request.n - 1) * self.running.fork_pages(request, last=False)
            fitting = self._fitting(request, match, room - held - (more if late else 0))
            if fitting is None:
                break
            room -= self.pool.cost(fitting, len(request.prompt_ids)) + held + more
            late += more
            self.line.take(at)
            yield self._open(request, fitting, copies)
        self._stuck = True

    def _fitting(self, request: Request, match: Match, room: int) -> Match | None:
        """The match with which a prompt takes at most ``room`` pages, or None. One that runs alone fits."""
        while self.pool.cost(match, len(request.prompt_ids)) > room:
            if self.running.requests:
                return None
            before = self.pool.available
            if not self.parking.drop_oldest():
                return match.without_copy()  # it fits if no copy source is pinned
            room += self.pool.available - before
        return match

    def _open(self, request: Request, match: Match, copies: list[Copy]) -> AdmittedRequest:
        """Open the prompt's pages and hold a fork."""
        run = AdmittedRequest(request, request.n, request.n, held=True)
        run.seq, copy = self.pool.open(request.namespace, request.prompt_ids, match)
        if copy is not None:
            copies.append(copy)
        self.admitted += 1
        self.recomputed += max(0, request.known - run.seq.computed)
        if request.lease is not None:
            self.parking.release(request.lease)
        self.running.admit(run)
        return run
