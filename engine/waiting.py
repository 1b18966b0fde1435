"""Requests that wait for admission, in an order that computes shared prompt tokens once.

Requests that arrive together are ordered by `sharing_order`: longest expected first, to powers of two, so
that small differences do not break the order of a shared prefix. A request that needs tokens which a running
request is computing is passed over until they are there. That writer makes progress or gives way itself, so
no request is passed over for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

from proactor.engine.kv import PagePool
from proactor.engine.prefix import Match, sharing_order
from proactor.engine.step import Request


@dataclass(slots=True, eq=False)
class _Place:
    request: Request
    match: Match | None = None  # of the latest search; while it is blocked there is no need to search again


class WaitingLine:
    """Higher priority first; then first come, first served, except for sharing and for those that arrive
    together. ``expected``: as `Running`.
    """

    def __init__(self, pool: PagePool, expected: Callable[[int, int], float]) -> None:
        self._pool, self._expected = pool, expected
        self._arrivals: list[Request] = []
        self._line: list[_Place] = []
        self.samples = 0
        """Samples of the requests that wait."""
        self.tokens = 0
        """Tokens of their prompts."""

    def __len__(self) -> int:
        return len(self._arrivals) + len(self._line)

    def __iter__(self) -> Iterator[Request]:
        yield from (place.request for place in self._line)
        yield from self._arrivals

    def add(self, request: Request) -> None:
        """Queue a request. All those added before the next `ready` count as arriving together."""
        self._arrivals.append(request)
        self._count(request, 1)

    def put_back(self, request: Request) -> None:
        """Queue a request that was preempted: before all others of its priority."""
        places = enumerate(self._line)
        at = next((i for i, place in places if place.request.priority <= request.priority), len(self._line))
        self._line.insert(at, _Place(request))
        self._count(request, 1)

    def remove(self, request_id: int) -> None:
        """Take a request out, and its samples that were preempted, wherever they stand."""
        for request in self:
            if request.id == request_id:
                self._count(request, -1)
        self._arrivals = [request for request in self._arrivals if request.id != request_id]
        self._line = [place for place in self._line if place.request.id != request_id]

    def rename(self, old: Hashable, new: Hashable) -> None:
        """Requests of namespace ``old`` belong to ``new`` from now on."""
        changed = [
            replace(request, namespace=new) if request.namespace == old else request for request in self
        ]
        count = len(self._line)
        self._line, self._arrivals = [_Place(request) for request in changed[:count]], changed[count:]

    def clear(self) -> None:
        """Take every request out."""
        self._arrivals.clear()
        self._line.clear()
        self.samples = self.tokens = 0

    def ready(self, start: int = 0) -> tuple[int, Request, Match] | None:
        """The first request from place ``start`` on that waits for no page: (place, request, match)."""
        if self._arrivals:
            lengths = [int(self._expected(0, request.max_tokens)).bit_length() for request in self._arrivals]
            order = sharing_order([request.prompt_ids for request in self._arrivals], lengths)
            self._line.extend(_Place(self._arrivals[i]) for i in order)
            self._arrivals.clear()
            self._line.sort(key=lambda place: -place.request.priority)  # stable
        for at in range(start, len(self._line)):
            place = self._line[at]
            if place.match is not None and place.match.blocked():
                continue
            place.match = self._pool.match(place.request.namespace, place.request.prompt_ids)
            if not place.match.blocked():
                return at, place.request, place.match
        return None

    def take(self, at: int) -> None:
        """Take out the request at this place: it has been admitted."""
        self._count(self._line.pop(at).request, -1)

    def _count(self, request: Request, sign: int) -> None:
        self.samples += sign * request.n
        self.tokens += sign * len(request.prompt_ids)
