"""What passes between the scheduler and whoever runs its steps: requests, steps, results."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from proactor.engine.kv import Copy, Sequence
from proactor.engine.types import EngineError

SampleId = tuple[int, int]
"""(request id, index of the sample)."""


class RequestTooLarge(EngineError):
    """The pool could not hold the request even if it were empty."""


@dataclass(slots=True, frozen=True, eq=False)
class Request:
    """`n` samples of at most `max_tokens` tokens each behind one prompt. `namespace` keys its KV (see
    `engine.kv`).
    """

    id: int
    namespace: Hashable
    prompt_ids: list[int]
    n: int = 1
    max_tokens: int = 256


@dataclass(slots=True, frozen=True, eq=False)
class Chunk:
    """Prompt tokens `start .. start + len(ids)` to compute. After the `last` one, its final row's logits draw
    n tokens.
    """

    request: Request
    block_table: list[int]
    start: int
    ids: list[int]
    last: bool

    @property
    def request_id(self) -> int:
        return self.request.id


@dataclass(slots=True, eq=False)
class Decode:
    """A sequence that decodes, one row a step. The object and its `block_table` live as long as the sequence
    and are updated in place: `commit` moves `input_id` and `length`, `plan` appends pages.
    """

    id: SampleId
    request: Request
    seq: Sequence
    block_table: list[int]
    generated: list[int]
    length: int  # tokens, `input_id` included: its position is length - 1
    input_id: int
    shared_pages: int  # leading pages shared with the siblings of the request
    capacity: int  # tokens the block table has room for
    need: int  # pages it may still ask for
    left: int  # tokens it may still draw


@dataclass(slots=True, frozen=True, eq=False)
class Step:
    """What to run: first the copies (all sources before any destination is written), then all rows in one
    pass.

    decodes: one object as long as nothing joins or leaves; read it, do not change it.
    roster: changes when a sequence joins or leaves `decodes`. grown: indices into it that got one more page
    in this plan.
    membership: changes when either happens, so equal numbers mean equal block tables.
    """

    copies: list[Copy]
    prefills: list[Chunk]
    decodes: list[Decode]
    membership: int
    roster: int
    grown: list[int]

    @property
    def rows(self) -> int:
        """Tokens that enter the model."""
        return len(self.decodes) + sum(len(chunk.ids) for chunk in self.prefills)


@dataclass(slots=True, frozen=True)
class Ended:
    """A sample that is complete. `last`: all samples of its request are."""

    request_id: int
    sample: int
    token_ids: list[int]
    reason: Literal["stop", "length"]
    last: bool
