"""Continuous batching over a page pool: which rows run in the next step.

A step is one forward pass: one row for each sequence that decodes, and the rest of the row budget for chunks
of prompts. A request computes its prompt once and then forks into `n` sequences that share the prompt's
pages. Requests whose prompts begin alike share those pages too: a request stays in the queue while another
one computes tokens that it needs, and takes them when they are there, so no shared token is computed twice.

A policy (`LoadPolicy`) decides before each step how many sequences decode and how many rows prompts get. Its
expected lengths decide how many pages running work is promised (`Running.promised`), and so what is admitted
beside it. Where samples get longer than that and pages run out, the least computed sequences are preempted
(`preemption.py`). `FixedLimits` promises the worst case, each sample to its last token, and never preempts.

A state machine without tensors or clocks: `plan`, run the step, `commit`, tell `load` how long it took, and
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import replace

from proactor.engine.admission import Admission
from proactor.engine.controller import Decision
from proactor.engine.forking import begin_forks, line_up_forks
from proactor.engine.kv import Copy, PagePool
from proactor.engine.load import FixedLimits, Load, LoadPolicy
from proactor.engine.parking import Parking
from proactor.engine.preemption import preempt, preempt_all
from proactor.engine.prefill import Prefill
from proactor.engine.running import Running
from proactor.engine.step import Ended, EndReason, Request, SampleId, Step
from proactor.engine.types import EngineError


class Scheduler:
    """Decides, step by step, what runs.

    pool: the pages. max_rows: rows a step. max_seqs: sequences that decode at once, at most max_rows.
    prefill_chunk: rows of one prompt a step. parked: most pages that `park` keeps. policy: decides within
    these limits; None: `FixedLimits`.
    """

    def __init__(
        self,
        pool: PagePool,
        max_rows: int = 8192,
        max_seqs: int = 256,
        prefill_chunk: int = 2048,
        parked: int = 0,
        policy: LoadPolicy | None = None,
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
        self.tokens_computed = 0
        self.tokens_forked = 0
        self.preemptions = 0
        self.load = Load(policy or FixedLimits(max_seqs, max_rows))
        self._running = Running(pool, self.load.policy.expected)
        self._admission = Admission(pool, self.parking, self._running)
        self._unended: dict[int, int] = {}  # samples that have not ended, by request id
        self._prefill = Prefill(self._running, self._admission)
        self._flight: Step | None = None  # planned, not committed
        self._aborted: set[int] = set()

    # -- events ---

    def add(self, request: Request) -> None:
        """Queue a request. Those added between two plans arrive together and are ordered for sharing.

        Raises EngineError for an empty request or an id in use, RequestTooLarge for one that can never fit.
        """
        if request.id in self._unended:
            raise EngineError(f"request {request.id}: the id is in use")
        self._admission.add(request)
        self._unended[request.id] = request.n

    def abort(self, request_id: int) -> bool:
        """Drop a request and free its pages (while a step runs: at its commit). False if it is not here."""
        if request_id not in self._unended:
            return False
        if self._flight is not None:
            self._aborted.add(request_id)
        else:
            self._drop(request_id)
        return True

    def _drop(self, request_id: int) -> None:
        self._admission.line.remove(request_id)
        for run in [run for run in self._running.requests.values() if run.request.id == request_id]:
            self._running.remove(run)
        self._unended.pop(request_id, None)
        self._admission.changed()

    def reset(self) -> None:
        """Drop everything, also a step that failed half-way: none of its pages count as computed."""
        self._running.drop_all()
        self._admission.line.clear()
        self.pool.settle()
        self._prefill.reset()
        self._flight = None
        self._unended.clear()
        self._aborted.clear()

    def drop_namespace(self, namespace: Hashable) -> int:
        """`PagePool.drop_namespace`: for KV whose weights have changed."""
        self.parking.drop_namespace(namespace)
        return self.pool.drop_namespace(namespace)

    def drop_all(self) -> None:
        """End all leases and drop every namespace: for a cache that loses its memory."""
        while self.parking.drop_oldest():
            pass
        self.pool.drop_all()

    def pause(self) -> None:
        """Between two steps: take all that runs back into the line, so that no page is in use."""
        assert self._flight is None, "a step runs"
        preempt_all(self._running, self._admission.line)
        self._admission.changed()

    def rename(self, old: Hashable, new: Hashable) -> None:
        """After `pause`: what waits with KV of namespace ``old`` goes on with that of ``new``."""
        self._admission.line.rename(old, new)
        self._admission.changed()

    def park(self, session: int, namespace: Hashable, ids: list[int]) -> None:
        """Keep the computed pages of ``ids`` for a later request, as far as running work leaves room."""
        self.parking.park(session, namespace, ids, self.pool.available - self.reserved)

    def forget(self, session: int) -> None:
        """Let go of what `park` kept for a session."""
        self.parking.forget(session)
        self._admission.changed()

    # -- readings ---

    @property
    def waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._admission.line)

    @property
    def reserved(self) -> int:
        """Pages that running work is expected to allocate yet."""
        return self._running.promised()

    @property
    def resting(self) -> bool:
        """Nothing runs; requests may wait."""
        return self._flight is None and not self._running.requests

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing running."""
        return not self._unended

    def counters(self) -> dict[str, int]:
        """Totals since the start, down to evictions; the rest are present values.

        tokens_avoided: prompt tokens that the prefix cache and forks saved computing. tokens_recomputed:
        those of a continued or preempted sample whose pages had gone. preemptions: sequences. waiting,
        running: requests. decoding: sequences.
        """
        return {
            "tokens_computed": self.tokens_computed,
            "tokens_avoided": self.pool.hits + self.tokens_forked,
            "tokens_avoided_prefix": self.pool.hits,
            "tokens_avoided_fork": self.tokens_forked,
            "tokens_recomputed": self._admission.recomputed,
            "preemptions": self.preemptions,
            "admitted": self._admission.admitted,
            "copies": self.pool.copies,
            "evictions": self.pool.evictions,
            "waiting": self.waiting,
            "running": len(self._running.requests),
            "decoding": len(self._running.decoding),
            "pages_total": self.pool.num_pages,
            "pages_used": self.pool.used,
            "pages_cached": self.pool.cached,
            "pages_reserved": self.reserved,
            "pages_parked": self.pool.held,
        }

    # -- a step ---

    def plan(self) -> Step | None:
        """The next step, or None when there is nothing to do. `commit` it, or `reset` if it failed."""
        assert self._flight is None, "plan() before the last step was committed"
        if self.idle:
            return None
        copies: list[Copy] = []
        decision = self._decide()
        decoding = self._running.decoding
        if self._running.forking and begin_forks(self._running, decision.max_seqs, copies):
            self._admission.changed()
        grown = decoding.grow(self.pool)
        prefills = self._prefill.plan(decision, self.max_rows, self.prefill_chunk, copies)
        assert prefills or decoding, "requests wait and nothing runs"
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
        missing = self._running.decoding.ids - sampled.keys()
        for chunk in step.prefills:
            if chunk.last:
                samples = {(chunk.request_id, s) for s in chunk.request.samples}
                missing |= samples - sampled.keys()
        if missing:
            raise EngineError(f"no token for (request, sample) {sorted(missing)}")
        self._flight = None
        self.pool.settle()
        self.tokens_computed += step.rows
        self.load.ran(step)
        decoding = self._running.decoding
        gone = decoding.append(sampled, finished)
        ended = list[Ended]()
        for decode in gone:
            self._running.end(decode)
            ended.append(self._ended(decode.request, decode.id[1], decode.generated, finished))
        if gone:
            decoding.replace([decode for decode in decoding if decode not in gone])
        if gone or step.prefills:
            self._admission.changed()
        for run in self._prefill.commit(step):
            request = run.request
            self.tokens_forked += (request.n - 1) * len(request.prompt_ids)
            for sample in line_up_forks(self._running, run, sampled, finished):
                token = sampled[request.id, sample]
                ended.append(self._ended(request, sample, [token], finished))
        if self._aborted:
            ended = [end for end in ended if end.request_id not in self._aborted]
            for request_id in sorted(self._aborted):
                self._drop(request_id)
            self._aborted.clear()
        return ended

    def check(self) -> None:
        """Assert the pool's rules and that the pages promised are there. For tests."""
        self.pool.check()
        self._running.check()
        fixed = isinstance(self.load.policy, FixedLimits)
        assert not fixed or self.reserved <= self.pool.available, "over-committed"
        assert not fixed or not self.preemptions, "preempted without need"
        assert len(self._running.decoding) <= self.max_seqs
        unended = Counter[int]()
        for request in self._admission.line:
            unended[request.id] += request.n
        for run in self._running.requests.values():
            unended[run.request.id] += run.unended
        assert unended == self._unended, "a sample is lost, or there twice"

    # -- deciding ---

    def _decide(self) -> Decision:
        """What the next step may do. Where pages are missing, parked ones go first, then sequences."""
        running, admission = self._running, self._admission
        while running.short() > 0 and self.parking.drop_oldest():
            pass
        short, waits = max(0, running.short()), len(admission.line) > 0
        decision = self.load.decide(
            waiting=admission.line.samples,
            admitted=running.samples,
            decoding=len(running.decoding) + sum(len(run.pending) for run in running.forking),
            backlog=admission.backlog,
            pages_total=self.pool.num_pages,
            pages_used=self.pool.used,
            pages_promised=running.promised() + running.late() if waits else 0,
            pages_short=short,
        )
        if short:
            self.preemptions += preempt(running, admission.line, max(short, decision.free_pages))
            admission.changed()
        return replace(decision, max_seqs=min(max(1, decision.max_seqs), self.max_seqs))

    # -- ending ---

    def _ended(
        self, request: Request, sample: int, drawn: list[int], finished: Collection[SampleId]
    ) -> Ended:
        """A sample is complete, of which a request (its own, or what was left of it) drew the last tokens."""
        root = request.root
        tokens = request.prompt_ids[len(root.prompt_ids) :] + drawn
        if root.max_tokens > 1:
            self.load.ended(len(tokens))
        self._unended[root.id] -= 1
        last = not self._unended[root.id]
        if last:
            del self._unended[root.id]
        reason: EndReason = "stop" if (root.id, sample) in finished else "length"
        return Ended(root.id, sample, tokens, reason, last)
