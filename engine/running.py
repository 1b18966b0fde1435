"""What the scheduler runs: admitted requests, the sequences that decode, and the pages promised to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from proactor.engine.kv import PagePool, Sequence
from proactor.engine.step import Decode, Request, SampleId


@dataclass(slots=True, eq=False)
class AdmittedRequest:
    """An admitted request and its forks."""

    request: Request
    unstarted: int  # forks that have not begun
    unended: int  # samples that have not ended
    seq: Sequence | None = None  # the prompt, until the last fork takes it over
    held: bool = False  # pages are promised to one fork that has not begun
    active: int = 0  # forks that decode
    pending: deque[tuple[int, int]] = field(default_factory=deque)  # (sample, first token) of forks to begin

    @property
    def next_is_last(self) -> bool:
        """Whether the next fork takes over the prompt's own pages."""
        return (len(self.pending) or self.unstarted) == 1


class DecodeSet:
    """The sequences that decode, in a fixed order. ``roster`` and ``membership`` as in `Step`."""

    def __init__(self) -> None:
        self.decodes: list[Decode] = []
        self.ids: set[SampleId] = set()
        self.roster = 0
        self.membership = 0

    def __len__(self) -> int:
        return len(self.decodes)

    def __iter__(self) -> Iterator[Decode]:
        return iter(self.decodes)

    def replace(self, decodes: list[Decode]) -> None:
        """Let these sequences decode from now on."""
        self.decodes = decodes
        self.ids = {decode.id for decode in decodes}
        self.roster += 1
        self.membership += 1

    def grow(self, pool: PagePool) -> list[int]:
        """Give a page to each sequence whose block table is full; returns their indices."""
        grown = []
        for i, decode in enumerate(self.decodes):
            if decode.length > decode.capacity:
                pool.grow(decode.seq)
                decode.capacity += pool.page_size
                grown.append(i)
        self.membership += bool(grown)
        return grown

    def append(self, sampled: Mapping[SampleId, int], finished: Collection[SampleId]) -> list[Decode]:
        """Append each sequence's drawn token; returns the sequences for which it was the last."""
        gone = []
        for decode in self.decodes:
            token = sampled[decode.id]
            decode.generated.append(token)
            decode.input_id = token
            decode.length += 1
            decode.left -= 1
            if not decode.left or decode.id in finished:
                gone.append(decode)
        return gone


class Running:
    """Admitted requests: all of them, those whose prompts are computed, those with forks to begin; and the
    sequences that decode.

    ``expected``: tokens that a sample which drew so many, of at most so many, will draw yet. Pages are
    promised accordingly.
    """

    def __init__(self, pool: PagePool, expected: Callable[[int, int], float]) -> None:
        self.pool, self.expected = pool, expected
        self.requests: dict[Request, AdmittedRequest] = {}
        self.prefilling: list[AdmittedRequest] = []
        self.forking: list[AdmittedRequest] = []
        self.decoding = DecodeSet()
        self.samples = 0
        """Samples of admitted requests that have not ended."""

    # -- pages ---

    def fork_pages(self, request: Request, last: bool) -> int:
        """Pages that a fork which has not begun will allocate; the last one takes over the prompt's."""
        if request.max_tokens == 1:  # the prompt draws the only token: nothing decodes
            return 0
        tokens, drawn = len(request.prompt_ids), request.drawn
        more = max(1, int(self.expected(drawn, drawn + request.max_tokens)))
        total = self.pool.pages_for(tokens + more - 1)
        return total - (self.pool.pages_for(tokens) if last else tokens // self.pool.page_size)

    def held_pages(self, run: AdmittedRequest) -> int:
        """Pages promised to the next fork of a run."""
        return self.fork_pages(run.request, run.next_is_last) if run.held else 0

    def decode_pages(self, decode: Decode) -> int:
        """Pages that a sequence will allocate."""
        drawn = decode.drawn
        more = int(self.expected(drawn, drawn + decode.left))
        return max(0, self.pool.pages_for(decode.length + more - 1) - len(decode.seq.block_table))

    def promised(self) -> int:
        """Pages that sequences which decode, and forks that are held, will allocate."""
        runs = list(self.requests.values())  # copied at once: counters are read from other threads too
        return sum(map(self.decode_pages, self.decoding)) + sum(map(self.held_pages, runs))

    def first_page(self, run: AdmittedRequest) -> int:
        """Pages that the next fork of a run takes when it begins: 1, or 0 for a page that it goes on with."""
        return 0 if run.next_is_last and len(run.request.prompt_ids) % self.pool.page_size else 1

    def short(self) -> int:
        """Pages that the next step needs and the pool has not; that of a first fork, if nothing else runs."""
        need = sum(decode.length > decode.capacity for decode in self.decoding)
        if not self.decoding and not self.prefilling and self.forking:
            need = self.first_page(self.forking[0])
        return need - self.pool.available

    def late(self) -> int:
        """Pages of the forks that neither began nor are held."""
        return sum(
            (run.unstarted - run.held) * self.fork_pages(run.request, last=False)
            for run in self.requests.values()
            if run.unstarted
        )

    # -- joining and leaving ---

    def admit(self, run: AdmittedRequest) -> None:
        """A request's prompt is computed from now on."""
        self.requests[run.request] = run
        self.prefilling.append(run)
        self.samples += run.unended

    def end(self, decode: Decode) -> AdmittedRequest:
        """Give a sequence's pages back, and hold the next fork of its run if none decodes. The caller takes
        it out of `decoding`.
        """
        run = self.requests[decode.request]
        self.close(decode)
        run.active -= 1
        run.held = run.held or (bool(run.pending) and not run.active)
        self.forget(run, 1)
        return run

    def forget(self, run: AdmittedRequest, samples: int) -> None:
        """So many samples of a run are gone; without any it is removed."""
        run.unended -= samples
        self.samples -= samples
        if not run.unended:
            self.remove(run)

    def drop_forks(self, run: AdmittedRequest) -> None:
        """Take out the forks that have not begun, and the prompt that they would begin from."""
        assert run.seq is not None
        self.pool.close(run.seq)
        run.seq, run.held, run.unstarted = None, False, 0
        gone = len(run.pending)
        run.pending.clear()
        self.forking.remove(run)
        self.forget(run, gone)

    def close(self, decode: Decode) -> None:
        """Give a sequence's pages back; what it computed stays in the prefix tree."""
        decode.seq.computed = decode.length - 1  # its last token was drawn, not fed back
        self.pool.close(decode.seq)

    def remove(self, run: AdmittedRequest) -> None:
        """Take a request out and free every page that it still holds."""
        if run.active:
            for decode in self.decoding:
                if decode.request is run.request:
                    self.close(decode)
            self.decoding.replace([d for d in self.decoding if d.request is not run.request])
        if run.seq is not None:
            self.pool.close(run.seq)
        for group in (self.prefilling, self.forking):
            if run in group:
                group.remove(run)
        self.samples -= run.unended
        del self.requests[run.request]

    def drop_all(self) -> None:
        """Take everything out; what was not committed does not count as computed."""
        for decode in self.decoding:
            self.pool.close(decode.seq, keep=False)
        for run in self.requests.values():
            if run.seq is not None:
                self.pool.close(run.seq, keep=False)
        self.decoding.replace([])
        for container in (self.requests, self.prefilling, self.forking):
            container.clear()
        self.samples = 0

    def check(self) -> None:
        """Assert that counts and open sequences are those of what is there. For tests."""
        runs = self.requests.values()
        assert all(run.held for run in runs if run.unstarted and not run.active), "no fork is held"
        assert self.samples == sum(run.unended for run in runs)
        assert len(self.decoding) == sum(run.active for run in runs)
        open_seqs = len(self.decoding) + sum(run.seq is not None for run in runs)
        assert open_seqs == self.pool.live, "a sequence is open and nobody runs it"
