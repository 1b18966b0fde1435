"""Which requests may wait, which begins next, and whether there is room for it.

A request is admitted when the pages of its prompt, and those that one fork is expected to need, are there
beyond what admitted work is expected to need. A request that does not fit as a whole is split: one of its
forks stays held until all have begun, so every request ends. While one is split, another is admitted only if
it fits as a whole on top of it: otherwise many prompts would be held for few sequences.
"""

from __future__ import annotations

from collections.abc import Iterator

from proactor.engine.kv import Copy, PagePool
from proactor.engine.parking import Parking
from proactor.engine.prefix import Match
from proactor.engine.running import AdmittedRequest, Running
from proactor.engine.step import Request, RequestTooLarge
from proactor.engine.types import EngineError
from proactor.engine.waiting import WaitingLine

LATELY = 64
"""Requests over which the share of cached tokens is averaged."""


class Admission:
    """Takes requests out of the waiting line.

    Counters: ``admitted`` requests, ``recomputed`` prompt tokens: known before, but their pages had gone.
    """

    def __init__(self, pool: PagePool, parking: Parking, running: Running) -> None:
        self.pool, self.parking, self.running = pool, parking, running
        self.line = WaitingLine(pool, running.expected)
        self.admitted = 0
        self.recomputed = 0
        self._stuck = False  # the line was tried in vain, and nothing has changed since
        self._tried = (0, 0)  # with these limits
        self._asked = self._fresh = (
            0.0  # tokens of prompts, and those that were not cached; later ones count more
        )

    def add(self, request: Request) -> None:
        """Let a request wait. Raises EngineError for an empty one, RequestTooLarge for one too large."""
        prompt, size = len(request.prompt_ids), self.pool.page_size
        if not prompt or request.n < 1 or request.max_tokens < 1:
            raise EngineError(f"request {request.id}: needs a prompt, n >= 1 and max_tokens >= 1")
        total = self.pool.pages_for(prompt + request.max_tokens - 1)
        spare = request.n > 1 and prompt % size > 0  # a partial page, copied
        if total + spare * (request.max_tokens > 1) > self.pool.num_pages:
            raise RequestTooLarge(
                f"request {request.id}: {prompt} prompt tokens and {request.max_tokens} new ones need "
                f"{total + spare} pages of {size} tokens, the pool has {self.pool.num_pages}"
            )
        self.line.add(request)
        self.changed()

    def changed(self) -> None:
        """Something arrived, ended or was computed: the line is worth another try."""
        self._stuck = False

    @property
    def backlog(self) -> int:
        """Tokens of prompts to compute; of those that wait, the share that was not cached lately."""
        share = self._fresh / self._asked if self._asked else 1.0
        left = sum(
            len(run.request.prompt_ids) - run.seq.computed
            for run in self.running.prefilling
            if run.seq is not None
        )
        return int(self.line.tokens * share) + left

    def admit(self, max_seqs: int, room: int, copies: list[Copy]) -> Iterator[AdmittedRequest]:
        """Admit requests one by one while fewer than ``max_seqs`` samples are admitted.

        room: pages that may be taken and promised, beyond what admitted work is promised.
        """
        tried = max_seqs, room
        if tried[0] > self._tried[0] or tried[1] > self._tried[1]:
            self._stuck = False
        at, late = 0, 0 if self._stuck else self.running.late()
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
        self._stuck, self._tried = True, tried

    def _fitting(self, request: Request, match: Match, room: int) -> Match | None:
        """The match with which a prompt takes at most ``room`` pages, or None. One that runs alone fits."""
        while self.pool.cost(match, len(request.prompt_ids)) > min(room, self.pool.available):
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
        self._asked += (len(request.prompt_ids) - self._asked) / LATELY
        self._fresh += (len(request.prompt_ids) - run.seq.computed - self._fresh) / LATELY
        if request.lease is not None:
            self.parking.release(request.lease)
        self.running.admit(run)
        return run
