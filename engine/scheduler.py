"""Continuous batching over a page pool: which rows run in the next step.

A step is one forward pass: one row for each sequence that decodes, and the rest of the row budget for chunks
of prompts. A request computes its prompt once and then forks into `n` sequences that share the prompt's
pages. Requests whose prompts begin alike share those pages too: a request stays in the queue while another
one computes tokens that it needs, and takes them when they are there, so no shared token is computed twice.

Admission never over-commits. `reserved` counts the pages that running work may still allocate in the worst
case (each fork to its last token). Nothing is admitted, forked or parked unless it leaves ``reserved <=
pool.available``, so a step never runs out of pages and nothing is preempted. A request that does not fit as a
whole is split: at least one of its forks is reserved until all have begun, so every request ends.

A state machine without tensors or clocks: `plan`, run the step, `commit`, and again.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace

from proactor.engine.kv import Copy, PagePool
from proactor.engine.parking import Parking
from proactor.engine.prefix import Match
from proactor.engine.running import AdmittedRequest, DecodeSet, sequence_pages
from proactor.engine.step import Chunk, Decode, Ended, EndReason, Request, RequestTooLarge, SampleId, Step
from proactor.engine.types import EngineError
from proactor.engine.waiting import WaitingLine


class Scheduler:
    """Decides, step by step, what runs.

    pool: the pages. max_rows: rows a step. max_seqs: sequences that decode at once, at most max_rows.
    prefill_chunk: rows of one prompt a step. parked: most pages that `park` keeps.
    """

    def __init__(
        self,
        pool: PagePool,
        max_rows: int = 8192,
        max_seqs: int = 256,
        prefill_chunk: int = 2048,
        parked: int = 0,
    ) -> None:
        if not 1 <= max_seqs <= max_rows or prefill_chunk < 1:
            raise EngineError(
                f"needs 1 <= max_seqs <= max_rows and prefill_chunk >= 1, got {max_seqs=}, {max_rows=}, "
                f"{prefill_chunk=}"
            )
        self.pool = pool
        self.parking = Parking(pool, parked)
        self.max_rows = max_rows
        self.max_seqs = max_seqs
        self.prefill_chunk = prefill_chunk
        self.reserved = 0
        self.admitted = 0
        self.tokens_computed = 0
        self.tokens_forked = 0
        self.tokens_recomputed = 0
        self._line = WaitingLine(pool)
        self._runs: dict[int, AdmittedRequest] = {}
        self._prefilling: list[AdmittedRequest] = []
        self._forking: list[AdmittedRequest] = []
        self._decoding = DecodeSet()
        self._ids: set[int] = set()
        self._stuck = False  # the queue was tried in vain, and nothing has changed since
        self._expected = 0  # samples of admitted requests that have not ended
        self._flight: Step | None = None  # planned, not committed
        self._chunks: list[AdmittedRequest] = []  # the runs of its prefills
        self._aborted: set[int] = set()

    # -- events ---

    def add(self, request: Request) -> None:
        """Queue a request. Those added between two plans arrive together and are ordered for sharing.

        Raises EngineError for an empty request or an id in use, RequestTooLarge for one that can never fit.
        """
        if request.id in self._ids:
            raise EngineError(f"request {request.id}: the id is in use")
        if not request.prompt_ids or request.n < 1 or request.max_tokens < 1:
            raise EngineError(f"request {request.id}: needs a prompt, n >= 1 and max_tokens >= 1")
        total = sequence_pages(request, self.pool)
        spare = request.n > 1 and len(request.prompt_ids) % self.pool.page_size > 0  # a partial page, copied
        if total + spare * (request.max_tokens > 1) > self.pool.num_pages:
            raise RequestTooLarge(
                f"request {request.id}: {len(request.prompt_ids)} prompt tokens and {request.max_tokens} new "
                f"ones need {total + spare} pages of {self.pool.page_size} tokens, the pool has "
                f"{self.pool.num_pages}"
            )
        self._ids.add(request.id)
        self._line.add(request)
        self._stuck = False

    def abort(self, request_id: int) -> bool:
        """Drop a request and free its pages (while a step runs: at its commit). False if it is not here."""
        if request_id not in self._ids:
            return False
        self._stuck = False
        if request_id not in self._runs:
            self._line.remove(request_id)
            self._ids.remove(request_id)
        elif self._flight is not None:
            self._aborted.add(request_id)
        else:
            self._remove(self._runs[request_id])
        return True

    def reset(self) -> None:
        """Drop everything, also a step that failed half-way: none of its pages count as computed."""
        for decode in self._decoding:
            self.pool.close(decode.seq, keep=False)
        for run in self._runs.values():
            if run.seq is not None:
                self.pool.close(run.seq, keep=False)
        self.pool.settle()
        self.reserved = self._expected = 0
        self._flight, self._chunks = None, []
        self._decoding.replace([])
        for container in (self._line, self._runs, self._prefilling, self._forking, self._ids, self._aborted):
            container.clear()

    def drop_namespace(self, namespace: Hashable) -> int:
        """`PagePool.drop_namespace`: for KV whose weights have changed."""
        self.parking.drop_namespace(namespace)
        return self.pool.drop_namespace(namespace)

    def drop_all(self) -> None:
        """End all leases and drop every namespace: for a cache that loses its memory."""
        while self.parking.drop_oldest():
            pass
        self.pool.drop_all()

    def park(self, session: int, namespace: Hashable, ids: list[int]) -> None:
        """Keep the computed pages of ``ids`` for a later request, as far as running work leaves room."""
        self.parking.park(session, namespace, ids, self.pool.available - self.reserved)

    def forget(self, session: int) -> None:
        """Let go of what `park` kept for a session."""
        self.parking.forget(session)
        self._stuck = False

    # -- readings ---

    @property
    def waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._line)

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing running."""
        return not self._ids

    def counters(self) -> dict[str, int]:
        """Totals since the start, down to evictions; the rest are present values.

        tokens_avoided: prompt tokens that the prefix cache and forks saved computing. tokens_recomputed:
        those of a continued sample whose pages had gone. waiting, running: requests. decoding: sequences.
        """
        return {
            "tokens_computed": self.tokens_computed,
            "tokens_avoided": self.pool.hits + self.tokens_forked,
            "tokens_avoided_prefix": self.pool.hits,
            "tokens_avoided_fork": self.tokens_forked,
            "tokens_recomputed": self.tokens_recomputed,
            "admitted": self.admitted,
            "copies": self.pool.copies,
            "evictions": self.pool.evictions,
            "waiting": self.waiting,
            "running": len(self._runs),
            "decoding": len(self._decoding),
            "pages_used": self.pool.used,
            "pages_cached": self.pool.cached,
            "pages_reserved": self.reserved,
            "pages_parked": self.pool.held,
        }

    # -- a step ---

    def plan(self) -> Step | None:
        """The next step, or None when there is nothing to do. `commit` it, or `reset` if it failed."""
        assert self._flight is None, "plan() before the last step was committed"
        copies: list[Copy] = []
        if self._forking:
            self._fork(copies)
        grown = self._decoding.grow(self.pool)
        self.reserved -= len(grown)
        prefills: list[Chunk] = []
        self._chunks = []
        if self._prefilling or not self._stuck:
            self._prefill(prefills, copies)
        decoding = self._decoding
        if not prefills and not decoding:
            assert self.idle, "requests wait and nothing runs"
            return None
        self._flight = Step(copies, prefills, decoding.decodes, decoding.membership, decoding.roster, grown)
        return self._flight

    def commit(
        self, step: Step, sampled: Mapping[SampleId, int], finished: Collection[SampleId] = frozenset()
    ) -> list[Ended]:
        """Take the tokens that a step drew: one a decode, and n for each chunk that ended a prompt.

        finished: samples whose token was their last (an end id, a stop string); those that reach max_tokens
        end by themselves. Returns the samples that ended. Raises EngineError, with nothing changed, when
        tokens are missing.
        """
        assert step is self._flight, "commit() of a step that is not the one planned last"
        missing = self._decoding.ids - sampled.keys()
        for chunk in step.prefills:
            if chunk.last:
                samples = {(chunk.request_id, s) for s in range(chunk.request.n)}
                missing |= samples - sampled.keys()
        if missing:
            raise EngineError(f"no token for (request, sample) {sorted(missing)}")
        self._flight = None
        self.pool.settle()
        self.tokens_computed += step.rows
        gone = self._decoding.append(sampled, finished)
        ended = [self._end(decode, "stop" if decode.id in finished else "length") for decode in gone]
        if gone:
            self._set_decodes([decode for decode in self._decoding if decode not in gone])
        if step.prefills:
            ended += self._advance(step, sampled, finished)
        if self._aborted:
            ended = [end for end in ended if end.request_id not in self._aborted]
            for request_id in sorted(self._aborted & self._runs.keys()):
                self._remove(self._runs[request_id])
            self._aborted.clear()
        return ended

    def check(self) -> None:
        """Assert the pool's rules and that the reservations are covered. For tests."""
        self.pool.check()
        runs, decoding = self._runs.values(), self._decoding
        needs = sum(decode.need for decode in decoding) + sum(run.hold or 0 for run in runs)
        assert needs == self.reserved, "reserved is not the sum of what running work may allocate"
        assert self.reserved <= self.pool.available, "over-committed"
        assert all(decode.need >= 0 for decode in decoding), "a sequence outgrew its reservation"
        assert all(run.hold is not None for run in runs if run.unstarted and not run.active), "no hold"
        assert self._expected == sum(run.unended for run in runs)
        assert len(decoding) == sum(run.active for run in runs) <= self.max_seqs
        open_seqs = len(decoding) + sum(run.seq is not None for run in runs)
        assert open_seqs == self.pool.live, "a sequence is open and nobody runs it"

    # -- starting ---

    def _fork(self, copies: list[Copy]) -> None:
        """Begin as many forks as there are places and pages for, in order of admission."""
        started: list[Decode] = []
        for run in self._forking:
            while run.pending and len(self._decoding) + len(started) < self.max_seqs:
                need = run.next_need()
                if need > self.pool.available - self.reserved + (run.hold or 0):
                    break
                self.reserved += need - (run.hold or 0)
                run.hold = None
                started.append(self._begin(run, need, copies))
        if started:
            self._forking = [run for run in self._forking if run.pending]
            self._set_decodes(self._decoding.decodes + started)

    def _begin(self, run: AdmittedRequest, need: int, copies: list[Copy]) -> Decode:
        """Begin the next fork of a run; the last one takes over the prompt's sequence."""
        assert run.seq is not None
        seq, request = run.seq, run.request
        sample, token = run.pending.popleft()
        if run.pending:
            seq, copy = self.pool.fork(run.seq)
            if copy is not None:
                copies.append(copy)
                need -= 1
                self.reserved -= 1
        else:
            run.seq = None
        seq.generated.append(token)
        run.unstarted -= 1
        run.active += 1
        return Decode(
            id=(request.id, sample),
            request=request,
            seq=seq,
            length=len(request.prompt_ids) + 1,
            input_id=token,
            shared_pages=len(request.prompt_ids) // self.pool.page_size if request.n > 1 else 0,
            capacity=len(seq.block_table) * self.pool.page_size,
            need=need,
            left=request.max_tokens - 1,
        )

    def _set_decodes(self, decodes: list[Decode]) -> None:
        self._decoding.replace(decodes)
        self._stuck = False

    def _prefill(self, prefills: list[Chunk], copies: list[Copy]) -> None:
        """Spend the rows that decoding leaves: go on with prompts begun, then admit from the queue."""
        budget = self.max_rows - len(self._decoding)
        for run in self._prefilling:
            budget -= self._chunk(run, budget, prefills)
        at = 0
        while budget > 0:
            ready = self._line.ready(at) if self._expected < self.max_seqs else None
            if ready is None:
                self._stuck = True
                return
            at, request, match = ready
            admitted = self._admit(request, match, copies)
            if admitted is None:
                self._stuck = True
                return
            self._line.take(at)
            budget -= self._chunk(admitted, budget, prefills)

    def _admit(self, request: Request, match: Match, copies: list[Copy]) -> AdmittedRequest | None:
        """Open the prompt's pages and reserve a fork, or None where that could over-commit.

        While admitted requests have forks that neither began nor are reserved, a request is admitted only if
        it fits as a whole on top of those: otherwise many prompts would be held for few sequences.
        """
        run = AdmittedRequest.of(request, self.pool)
        hold = run.need_copy if request.n > 1 else run.need_last
        late = sum(other.unreserved() for other in self._runs.values())
        if late:
            late += (request.n - 1) * run.need_copy
        need = hold + late
        while self.pool.cost(match, len(request.prompt_ids)) + need > self.pool.available - self.reserved:
            if self._runs:
                return None
            if not self.parking.drop_oldest():
                match = match.without_copy()  # a request that runs alone fits if no copy source is pinned
                break
        run.seq, copy = self.pool.open(request.namespace, request.prompt_ids, match)
        if copy is not None:
            copies.append(copy)
        run.hold = hold
        self.reserved += hold
        self.admitted += 1
        self.tokens_recomputed += max(0, request.known - run.seq.computed)
        if request.lease is not None:
            self.parking.release(request.lease)
        self._expected += request.n
        self._runs[request.id] = run
        self._prefilling.append(run)
        return run

    def _chunk(self, run: AdmittedRequest, budget: int, prefills: list[Chunk]) -> int:
        """Plan the next rows of a prompt; returns how many."""
        assert run.seq is not None
        start, prompt = run.seq.computed, run.request.prompt_ids
        end = min(start + self.prefill_chunk, start + budget, len(prompt))
        if end > start:
            ids, last = prompt[start:end], end == len(prompt)
            prefills.append(Chunk(run.request, run.seq.block_table, start, ids, last))
            self._chunks.append(run)
        return end - start

    # -- ending ---

    def _advance(
        self, step: Step, sampled: Mapping[SampleId, int], finished: Collection[SampleId]
    ) -> list[Ended]:
        """Mark a step's prompt rows as computed; returns the samples that ended with their first token."""
        self._stuck = False
        ended: list[Ended] = []
        for chunk, run in zip(step.prefills, self._chunks, strict=True):
            assert run.seq is not None
            self.pool.advance(run.seq, len(chunk.ids))
            if chunk.last:
                ended += self._complete_prompt(run, sampled, finished)
        return ended

    def _complete_prompt(
        self, run: AdmittedRequest, sampled: Mapping[SampleId, int], finished: Collection[SampleId]
    ) -> list[Ended]:
        """A prompt is computed: each first token begins a fork, or ends its sample."""
        request, ended = run.request, []
        self._prefilling.remove(run)
        self._forking.append(run)
        self.tokens_forked += (request.n - 1) * len(request.prompt_ids)
        for sample in range(request.n):
            key = (request.id, sample)
            if request.max_tokens > 1 and key not in finished:
                run.pending.append((sample, sampled[key]))
                continue
            run.unstarted -= 1
            run.unended -= 1
            self._expected -= 1
            reason: EndReason = "stop" if key in finished else "length"
            ended.append(Ended(request.id, sample, [sampled[key]], reason, last=False))
        if not run.pending:
            ended[-1] = replace(ended[-1], last=True)
            self._remove(run)
        return ended

    def _end(self, decode: Decode, reason: EndReason) -> Ended:
        """A sample is complete: give its pages back, and reserve the request's next fork if none is."""
        run = self._runs[decode.id[0]]
        self._close(decode)
        run.active -= 1
        run.unended -= 1
        self._expected -= 1
        if run.pending and not run.active:
            run.hold = run.next_need()
            self.reserved += run.hold
        if not run.unended:
            self._remove(run)
        return Ended(*decode.id, decode.generated, reason, last=not run.unended)

    def _close(self, decode: Decode) -> None:
        decode.seq.computed = decode.length - 1  # its last token was drawn, not fed back
        self.pool.close(decode.seq)
        self.reserved -= decode.need

    def _remove(self, run: AdmittedRequest) -> None:
        """Forget a request and free every page that it still holds."""
        if run.active:
            for decode in self._decoding:
                if decode.request is run.request:
                    self._close(decode)
            self._set_decodes([decode for decode in self._decoding if decode.request is not run.request])
        if run.seq is not None:
            self.pool.close(run.seq)
        self.reserved -= run.hold or 0
        self._expected -= run.unended
        for group in (self._prefilling, self._forking):
            if run in group:
                group.remove(run)
        del self._runs[run.request.id]
        self._ids.remove(run.request.id)
        self._stuck = False
