"""What passes between the scheduler and the sampler that runs its steps: requests, steps, results."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from proactor.engine.kv import Copy, Sequence
from proactor.engine.types import EngineError

SampleId = tuple[int, int]
"""(request id, index of the sample)."""
EndReason = Literal["stop", "length"]


class RequestTooLarge(EngineError):
    """The pool could not hold the request even if it were empty."""


@dataclass(slots=True, frozen=True, eq=False)
class Request:
    """``n`` samples of at most ``max_tokens`` tokens each. ``namespace``: the cache key of its KV.

    Higher ``priority`` is admitted first. ``known``: leading tokens that were computed before. ``lease``: the
    name of the pages kept for it (`Parking`), let go once it is admitted.

    A sample that was preempted is a request again, with the id of its ``origin``: its prompt goes on with the
    tokens that it had drawn. ``first``: the index of its first sample.
    """

    id: int
    namespace: Hashable
    prompt_ids: list[int]
    n: int = 1
    max_tokens: int = 256
    priority: int = 0
    known: int = 0
    lease: int | None = None
    first: int = 0
    origin: Request | None = None

    @property
    def samples(self) -> range:
        """The indices of its samples."""
        return range(self.first, self.first + self.n)

    @property
    def root(self) -> Request:
        """The request as it was added."""
        return self.origin or self

    @property
    def drawn(self) -> int:
        """Last tokens of the prompt that the sample had drawn before it was preempted."""
        return len(self.prompt_ids) - len(self.root.prompt_ids)

    def resumed(self, sample: int, tokens: list[int]) -> Request:
        """What is left of one sample that drew further ``tokens``; the last of them was not fed back."""
        ids = [*self.prompt_ids, *tokens]
        left, known = self.max_tokens - len(tokens), len(ids) - 1
        return Request(
            self.id, self.namespace, ids, 1, left, self.priority, known, first=sample, origin=self.root
        )


@dataclass(slots=True, frozen=True, eq=False)
class Chunk:
    """Prompt tokens ``start .. start + len(ids)`` to compute. The ``last`` one's final row draws n tokens."""

    request: Request
    block_table: list[int]
    start: int
    ids: list[int]
    last: bool

    @property
    def request_id(self) -> int:
        """The id of its request."""
        return self.request.id


@dataclass(slots=True, eq=False)
class Decode:
    """A sequence that decodes, one row a step.

    The object and its ``block_table`` live as long as the sequence and are updated in place: `commit` moves
    ``input_id`` and ``length``, `plan` appends pages.
    """

    id: SampleId
    request: Request
    seq: Sequence
    length: int  # tokens, `input_id` included: its position is length - 1
    input_id: int
    shared_pages: int  # leading pages shared with the siblings of the request
    capacity: int  # tokens that the block table has room for
    left: int  # tokens it may still draw

    @property
    def family(self) -> tuple[int, int]:
        """Equal for samples of one request whose ``shared_pages`` leading pages are the same."""
        shared = self.shared_pages
        return self.request.id, self.seq.block_table[shared - 1] if shared else -1

    @property
    def drawn(self) -> int:
        """Tokens that the sample drew."""
        return self.length - len(self.request.root.prompt_ids)

    @property
    def block_table(self) -> list[int]:
        """Pages of the sequence, in order."""
        return self.seq.block_table

    @property
    def generated(self) -> list[int]:
        """Tokens drawn so far."""
        return self.seq.generated


@dataclass(slots=True, frozen=True, eq=False)
class Step:
    """What to run: first the copies (read all sources before writing), then all rows in one forward pass.

    decodes: one object as long as nothing joins or leaves; do not change it. grown: indices into it that got
    a page in this plan. roster: changes when a sequence joins or leaves ``decodes``. membership: changes then
    and when one gets a page, so equal numbers mean equal block tables.
    """

    copies: list[Copy]
    prefills: list[Chunk]
    decodes: list[Decode]
    membership: int
    roster: int
    grown: list[int]

    @property
    def draws(self) -> bool:
        """Whether any token is drawn."""
        return bool(self.decodes) or any(chunk.last for chunk in self.prefills)

    @property
    def rows(self) -> int:
        """Tokens that enter the model."""
        return len(self.decodes) + sum(len(chunk.ids) for chunk in self.prefills)


@dataclass(slots=True, frozen=True)
class Ended:
    """A sample that is complete. ``last``: it was the last one of its request."""

    request_id: int
    sample: int
    token_ids: list[int]
    reason: EndReason
    last: bool
