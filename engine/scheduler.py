"""Continuous batching over a page pool: which rows run in the next step.

A step is one forward pass: one row for each sequence that decodes, the rest of its row budget for chunks of
prompts. A request computes its prompt once and then forks into `n` sequences that share the prompt's pages.
Requests whose prompts begin alike share those pages too: a request stays in the queue while somebody else
computes tokens that it needs, and takes them when they are there, so that no shared token is computed twice,
whatever arrives together.

Admission never over-commits. `reserved` counts the pages that running work may still ask for in the worst
case (each fork to its last token), and nothing is admitted or forked unless `reserved <= pool.available`
holds afterwards; so a step never runs out of pages and nothing is ever preempted. What does not fit as a
whole is split: of an admitted request at least one fork is reserved until all have begun, hence every request
ends.

A state machine without tensors or clocks: its decisions follow from the events it saw. `plan` -> run the step
-> `commit`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from proactor.engine.kv import Copy, PagePool, Sequence
from proactor.engine.prefix import Match
from proactor.engine.step import Chunk, Decode, Ended, Request, RequestTooLarge, SampleId, Step
from proactor.engine.types import EngineError
from proactor.engine.waiting import WaitingLine


@dataclass(slots=True, eq=False)
class _Run:
    """An admitted request. `seq` holds the prompt until the last fork takes it over."""

    request: Request
    seq: Sequence | None
    total: int  # pages of one sequence with all its tokens
    hold: int | None  # pages reserved for a fork that has not begun
    unstarted: int  # forks that have not begun
    unended: int  # samples that have not ended
    active: int = 0
    pending: deque[tuple[int, int]] = field(default_factory=deque)  # (sample, its first token), not begun yet


class Scheduler:
    """Decides, step by step, what runs.

    pool: the pages. max_rows: rows a step. max_seqs: sequences that decode at once, at most max_rows.
    prefill_chunk: rows of one prompt a step.
    """

    def __init__(
        self, pool: PagePool, max_rows: int = 8192, max_seqs: int = 256, prefill_chunk: int = 2048
    ) -> None:
        if not 1 <= max_seqs <= max_rows or prefill_chunk < 1:
            raise EngineError(
                f"needs 1 <= max_seqs <= max_rows and prefill_chunk >= 1, got {max_seqs=}, {max_rows=}, "
                f"{prefill_chunk=}"
            )
        self.pool = pool
        self.max_rows = max_rows
        self.max_seqs = max_seqs
        self.prefill_chunk = prefill_chunk
        self.reserved = 0
        self.admitted = 0
        self.tokens_computed = 0
        self.tokens_forked = 0
        self._line = WaitingLine(pool)
        self._runs: dict[int, _Run] = {}
        self._prefilling: list[_Run] = []
        self._forking: list[_Run] = []
        self._decodes: list[Decode] = []
        self._ids: set[int] = set()
        self._stuck = False  # nothing has changed since the queue was last tried in vain
        self._expected = 0  # samples of admitted requests that have not ended
        self._roster = 0
        self._membership = 0
        self._flight: Step | None = None
        self._chunks: list[_Run] = []
        self._drawn: set[SampleId] = set()
        self._aborted: set[int] = set()

    # -- events ---

    def add(self, request: Request) -> None:
        """Queue a request. Requests added between two plans count as arriving together and are ordered for
        sharing.

        Raises EngineError for a request without tokens or with an id in use, RequestTooLarge for one that can
        never fit.
        """
        if request.id in self._ids:
            raise EngineError(f"request {request.id}: the id is in use")
        if not request.prompt_ids or request.n < 1 or request.max_tokens < 1:
            raise EngineError(f"request {request.id}: needs a prompt, n >= 1 and max_tokens >= 1")
        total, spare = (
            self._total(request),
            request.n > 1 and len(request.prompt_ids) % self.pool.page_size > 0,
        )
        if total + spare * (request.max_tokens > 1) > self.pool.num_pages:
            raise RequestTooLarge(
                f"request {request.id}: {len(request.prompt_ids)} prompt tokens and {request.max_tokens} "
                "new ones need "
                f"{total + spare} pages of {self.pool.page_size} tokens, the pool has {self.pool.num_pages}"
            )
        self._ids.add(request.id)
        self._line.add(request)
        self._stuck = False

    def abort(self, request_id: int) -> bool:
        """Drop a request and free what it holds (while a step runs: at its commit). False if it is not here
        (any more).
        """
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
        """Drop everything, a step that failed half-way included: of its pages nothing is kept as computed."""
        for decode in self._decodes:
            self.pool.close(decode.seq, keep=False)
        for run in self._runs.values():
            if run.seq is not None:
                self.pool.close(run.seq, keep=False)
        self.pool.settle()
        self.reserved = self._expected = 0
        self._flight, self._decodes, self._chunks = None, [], []
        self._roster += 1
        self._membership += 1
        for box in (
            self._line,
            self._runs,
            self._prefilling,
            self._forking,
            self._ids,
            self._drawn,
            self._aborted,
        ):
            box.clear()

    def drop_namespace(self, namespace: Hashable) -> int:
        """`PagePool.drop_namespace`: after a change of weights, the KV computed with the old ones is of no
        use.
        """
        return self.pool.drop_namespace(namespace)

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
        """Since the start: rows computed, tokens that sharing avoided (prefix cache; forks), admissions,
        copies, evictions. Now: requests waiting, running, sequences decoding, pages used, cached and
        reserved.
        """
        return {
            "tokens_computed": self.tokens_computed,
            "tokens_avoided": self.pool.hits + self.tokens_forked,
            "tokens_avoided_prefix": self.pool.hits,
            "tokens_avoided_fork": self.tokens_forked,
            "admitted": self.admitted,
            "copies": self.pool.copies,
            "evictions": self.pool.evictions,
            "waiting": self.waiting,
            "running": len(self._runs),
            "decoding": len(self._decodes),
            "pages_used": self.pool.used,
            "pages_cached": self.pool.cached,
            "pages_reserved": self.reserved,
        }

    # -- a step ---

    def plan(self) -> Step | None:
        """The next step; None when there is nothing to do. To be followed by `commit` (or `reset`, if the
        step failed).
        """
        if self._flight is not None:
            raise RuntimeError("plan() before the last step was committed")
        copies: list[Copy] = []
        if self._forking:
            self._fork(copies)
        grown: list[int] = []
        for i, decode in enumerate(self._decodes):
            if decode.length > decode.capacity:
                self.pool.grow(decode.seq)
                decode.capacity += self.pool.page_size
                decode.need -= 1
                self.reserved -= 1
                grown.append(i)
        self._membership += bool(grown)
        prefills: list[Chunk] = []
        self._chunks = []
        if self._prefilling or not self._stuck:
            self._prefill(prefills, copies)
        if not prefills and not self._decodes:
            assert self.idle, "requests wait and nothing runs"
            return None
        self._flight = Step(copies, prefills, self._decodes, self._membership, self._roster, grown)
        return self._flight

    def commit(
        self, step: Step, sampled: Mapping[SampleId, int], finished: Collection[SampleId] = frozenset()
    ) -> list[Ended]:
        """Take the tokens a step drew: one for each of its decodes, and n for each chunk that was a prompt's
        last.

        finished: samples whose token was their last (an end id, a stop string); those that reached max_tokens
        end by themselves. Returns the samples that ended. Raises, with nothing changed, when tokens are
        missing.
        """
        if step is not self._flight:
            raise RuntimeError("commit() of a step that is not the one planned last")
        lasts = [run for chunk, run in zip(step.prefills, self._chunks, strict=True) if chunk.last]
        missing = self._drawn - sampled.keys()
        for run in lasts:
            missing.update(
                (run.request.id, s) for s in range(run.request.n) if (run.request.id, s) not in sampled
            )
        if missing:
            raise EngineError(f"no token for (request, sample) {sorted(missing)}")
        self._flight = None
        self.pool.settle()
        gone: list[Decode] = []
        for decode in step.decodes:
            token = sampled[decode.id]
            decode.generated.append(token)
            decode.input_id = token
            decode.length += 1
            decode.left -= 1
            if not decode.left or decode.id in finished:
                gone.append(decode)
        self.tokens_computed += len(step.decodes)
        ended = [self._end(decode, "stop" if decode.id in finished else "length") for decode in gone]
        if gone:
            self._enrol([decode for decode in self._decodes if decode not in gone])
        if step.prefills:
            self._advance(step, sampled, finished, ended)
        if self._aborted:
            ended = [end for end in ended if end.request_id not in self._aborted]
            for request_id in sorted(self._aborted & self._runs.keys()):
                self._remove(self._runs[request_id])
            self._aborted.clear()
        return ended

    def check(self) -> None:
        """Assert the pool's rules and that the reservations are covered. For tests."""
        self.pool.check()
        needs = sum(decode.need for decode in self._decodes) + sum(
            run.hold or 0 for run in self._runs.values()
        )
        assert needs == self.reserved, "reserved is not the sum of what running work may ask for"
        assert self.reserved <= self.pool.available, "over-committed"
        assert all(decode.need >= 0 for decode in self._decodes), "a sequence outgrew its reservation"
        assert all(run.hold is not None for run in self._runs.values() if run.unstarted and not run.active), (
            "no hold"
        )
        assert self._expected == sum(run.unended for run in self._runs.values())
        assert len(self._decodes) == sum(run.active for run in self._runs.values()) <= self.max_seqs
        open_seqs = len(self._decodes) + sum(run.seq is not None for run in self._runs.values())
        assert open_seqs == self.pool.live, "a sequence is open and nobody runs it"

    # -- starting ---

    def _total(self, request: Request) -> int:
        """Pages of one sample with all its tokens. The last token drawn is never fed back, so it needs no
        place.
        """
        return self.pool.pages_for(len(request.prompt_ids) + request.max_tokens - 1)

    def _need(self, run: _Run, copy: bool) -> int:
        """Pages a fork allocates in the worst case: behind the full prompt pages, or behind all of them."""
        if run.request.max_tokens == 1:
            return 0
        tokens = len(run.request.prompt_ids)
        return run.total - (tokens // self.pool.page_size if copy else self.pool.pages_for(tokens))

    def _fork(self, copies: list[Copy]) -> None:
        """Begin as many forks as there are places and pages for, in order of admission."""
        started: list[Decode] = []
        for run in self._forking:
            while run.pending and len(self._decodes) + len(started) < self.max_seqs:
                need = self._need(run, copy=len(run.pending) > 1)
                if need > self.pool.available - self.reserved + (run.hold or 0):
                    break
                self.reserved += need - (run.hold or 0)
                run.hold = None
                started.append(self._begin(run, need, copies))
        if started:
            self._forking = [run for run in self._forking if run.pending]
            self._enrol(self._decodes + started)

    def _begin(self, run: _Run, need: int, copies: list[Copy]) -> Decode:
        assert run.seq is not None, "the prompt is kept until the last fork takes it over"
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
            block_table=seq.block_table,
            generated=seq.generated,
            length=len(request.prompt_ids) + 1,
            input_id=token,
            shared_pages=len(request.prompt_ids) // self.pool.page_size if request.n > 1 else 0,
            capacity=len(seq.block_table) * self.pool.page_size,
            need=need,
            left=request.max_tokens - 1,
        )

    def _enrol(self, decodes: list[Decode]) -> None:
        self._decodes = decodes
        self._drawn = {decode.id for decode in decodes}
        self._roster += 1
        self._membership += 1
        self._stuck = False

    def _prefill(self, prefills: list[Chunk], copies: list[Copy]) -> None:
        """Spend the rows that decoding leaves: go on with prompts begun, then admit from the queue."""
        budget = self.max_rows - len(self._decodes)
        for run in self._prefilling:
            budget -= self._chunk(run, budget, prefills)
        at = 0
        while budget > 0:
            found = self._line.ready(at) if self._expected < self.max_seqs else None
            admitted = self._admit(found[1], found[2], copies) if found else None
            if found is None or admitted is None:
                self._stuck = True
                return
            at = found[0]
            self._line.take(at)
            budget -= self._chunk(admitted, budget, prefills)

    def _admit(self, request: Request, match: Match, copies: list[Copy]) -> _Run | None:
        """Open the prompt's pages and reserve a fork, or None where that could over-commit.

        While admitted requests have forks that neither began nor are reserved, only a request that fits as a
        whole, on top of those, is admitted: otherwise many prompts would be held for few sequences.
        """
        run = _Run(request, None, self._total(request), None, request.n, request.n)
        hold = self._need(run, copy=request.n > 1)
        late = sum(
            (r.unstarted - (r.hold is not None)) * self._need(r, True)
            for r in self._runs.values()
            if r.unstarted
        )
        if late:
            late += (request.n - 1) * self._need(run, True)
        if self.pool.cost(match, len(request.prompt_ids)) + hold + late > self.pool.available - self.reserved:
            if self._runs:
                return None
            match = match.without_copy()  # alone, it fits at least without a pinned source
        run.seq, copy = self.pool.open(request.namespace, request.prompt_ids, match)
        if copy is not None:
            copies.append(copy)
        run.hold = hold
        self.reserved += hold
        self.admitted += 1
        self._expected += request.n
        self._runs[request.id] = run
        self._prefilling.append(run)
        return run

    def _chunk(self, run: _Run, budget: int, prefills: list[Chunk]) -> int:
        """Plan the next rows of a prompt; returns how many."""
        assert run.seq is not None
        start, prompt = run.seq.computed, run.request.prompt_ids
        end = min(start + self.prefill_chunk, start + budget, len(prompt))
        if end > start:
            prefills.append(
                Chunk(run.request, run.seq.block_table, start, prompt[start:end], end == len(prompt))
            )
            self._chunks.append(run)
        return end - start

    # -- ending ---

    def _advance(
        self, step: Step, sampled: Mapping[SampleId, int], finished: Collection[SampleId], ended: list[Ended]
    ) -> None:
        """Book the prompt rows of a step; a prompt that is complete gives the first tokens of its forks."""
        self._stuck = False
        for chunk, run in zip(step.prefills, self._chunks, strict=True):
            assert run.seq is not None
            request = run.request
            self.pool.advance(run.seq, len(chunk.ids))
            self.tokens_computed += len(chunk.ids)
            if not chunk.last:
                continue
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
                reason: Literal["stop", "length"] = "stop" if key in finished else "length"
                ended.append(Ended(request.id, sample, [sampled[key]], reason, last=False))
            if not run.pending:
                ended[-1] = replace(ended[-1], last=True)
                self._remove(run)

    def _end(self, decode: Decode, reason: Literal["stop", "length"]) -> Ended:
        """A sample is complete: its pages go back, its reservation goes on to the next fork of the
        request.
        """
        run = self._runs[decode.id[0]]
        self._close(decode)
        run.active -= 1
        run.unended -= 1
        self._expected -= 1
        if run.pending and not run.active:
            run.hold = self._need(run, copy=len(run.pending) > 1)
            self.reserved += run.hold
        if not run.unended:
            self._remove(run)
        return Ended(*decode.id, decode.generated, reason, last=not run.unended)

    def _close(self, decode: Decode) -> None:
        decode.seq.computed = decode.length - 1  # its last token was drawn, not fed back
        self.pool.close(decode.seq)
        self.reserved -= decode.need

    def _remove(self, run: _Run) -> None:
        """Forget a request, with whatever of it still holds pages."""
        if run.active:
            for decode in self._decodes:
                if decode.request is run.request:
                    self._close(decode)
            self._enrol([decode for decode in self._decodes if decode.request is not run.request])
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
