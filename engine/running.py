"""What the scheduler runs: admitted requests, and the sequences that decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from proactor.engine.kv import PagePool, Sequence
from proactor.engine.step import Decode, Request, SampleId


def sequence_pages(request: Request, pool: PagePool) -> int:
    """Pages of one sample with all its tokens; the last one is never fed back and needs no slot."""
    return pool.pages_for(len(request.prompt_ids) + request.max_tokens - 1)


@dataclass(slots=True, eq=False)
class AdmittedRequest:
    """An admitted request, its forks, and the pages that they may still allocate."""

    request: Request
    need_copy: int  # pages of a fork that copies the prompt's partial page, in the worst case
    need_last: int  # pages of the last fork, which takes over the prompt's own pages
    unstarted: int  # forks that have not begun
    unended: int  # samples that have not ended
    seq: Sequence | None = None  # the prompt, until the last fork takes it over
    hold: int | None = None  # pages reserved for a fork that has not begun
    active: int = 0  # forks that decode
    pending: deque[tuple[int, int]] = field(default_factory=deque)  # (sample, first token) of forks to begin

    @classmethod
    def of(cls, request: Request, pool: PagePool) -> AdmittedRequest:
        """The state of a request before its first step."""
        total, tokens = sequence_pages(request, pool), len(request.prompt_ids)
        if request.max_tokens == 1:  # the prompt draws the only token: nothing decodes
            return cls(request, 0, 0, request.n, request.n)
        need_copy, need_last = total - tokens // pool.page_size, total - pool.pages_for(tokens)
        return cls(request, need_copy, need_last, request.n, request.n)

    def next_need(self) -> int:
        """Pages of the next fork in the worst case."""
        return self.need_copy if len(self.pending) > 1 else self.need_last

    def unreserved(self) -> int:
        """Pages, in the worst case, of the forks that neither began nor are reserved."""
        return (self.unstarted - (self.hold is not None)) * self.need_copy if self.unstarted else 0


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
                decode.need -= 1
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
