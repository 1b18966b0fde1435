"""Requests that wait for admission, in an order that computes shared prompt tokens once.

Requests that arrive together are ordered by `sharing_order`. A request that needs tokens which a running
request is computing is passed over until they are there. That writer always makes progress, so no request is
passed over for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proactor.engine.kv import PagePool
from proactor.engine.prefix import Match, sharing_order
from proactor.engine.step import Request


@dataclass(slots=True, eq=False)
class _Place:
    request: Request
    match: Match | None = None  # of the latest search; while it is blocked there is no need to search again


class WaitingLine:
    """Higher priority first; then first come, first served, except for sharing."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._arrivals: list[Request] = []
        self._line: list[_Place] = []

    def __len__(self) -> int:
        return len(self._arrivals) + len(self._line)

    def __iter__(self) -> Iterator[Request]:
        yield from (place.request for place in self._line)
        yield from self._arrivals

    def add(self, request: Request) -> None:
        """Queue a request. All those added before the next `ready` count as arriving together."""
        self._arrivals.append(request)

    def remove(self, request_id: int) -> None:
        """Take a request out, wherever it stands."""
        self._arrivals = [request for request in self._arrivals if request.id != request_id]
        self._line = [place for place in self._line if place.request.id != request_id]

    def clear(self) -> None:
        """Take every request out."""
        self._arrivals.clear()
        self._line.clear()

    def ready(self, start: int = 0) -> tuple[int, Request, Match] | None:
        """The first request from place ``start`` on that waits for no page: (place, request, match)."""
        if self._arrivals:
            order = sharing_order([request.prompt_ids for request in self._arrivals])
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
        del self._line[at]
