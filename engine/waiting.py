"""Requests that wait for admission, in an order in which shared prompt tokens are computed once.

Those that arrive together are ordered by `sharing_order`. Whoever needs tokens that a running request is
computing is passed over until they are there: a wait for a writer, which always moves, so nobody is passed
over for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.engine.kv import PagePool
from proactor.engine.prefix import Match, sharing_order
from proactor.engine.step import Request


@dataclass(slots=True, eq=False)
class _Place:
    request: Request
    match: Match | None = None  # found last; its wait says when to look again


class WaitingLine:
    """First come, first served, except for sharing."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._arrivals: list[Request] = []
        self._line: list[_Place] = []

    def __len__(self) -> int:
        return len(self._arrivals) + len(self._line)

    def add(self, request: Request) -> None:
        """Requests added before the next `ready` arrive together."""
        self._arrivals.append(request)

    def remove(self, request_id: int) -> None:
        """Take a request out, wherever it stands."""
        self._arrivals = [request for request in self._arrivals if request.id != request_id]
        self._line = [place for place in self._line if place.request.id != request_id]

    def clear(self) -> None:
        """Nobody waits."""
        self._arrivals.clear()
        self._line.clear()

    def ready(self, start: int = 0) -> tuple[int, Request, Match] | None:
        """The first request from place `start` on that waits for no page: its place, itself, its match as of
        now.
        """
        if self._arrivals:
            order = sharing_order([request.prompt_ids for request in self._arrivals])
            self._line.extend(_Place(self._arrivals[i]) for i in order)
            self._arrivals.clear()
        for at in range(start, len(self._line)):
            place = self._line[at]
            if place.match is not None and place.match.blocked():
                continue
            place.match = self._pool.match(place.request.namespace, place.request.prompt_ids)
            if not place.match.blocked():
                return at, place.request, place.match
        return None

    def take(self, at: int) -> None:
        """The request at this place has been admitted."""
        del self._line[at]
