"""Pages kept for samples that a session may continue: an environment thinks, and the cache must not forget.

A lease names the pages of one sample's tokens. Leases never hold more than ``cap`` pages together: beyond
that, and where a request could not run at all, the oldest lease ends. Its pages then stay only until they are
evicted; what has to be computed again is counted (`Scheduler.recomputed`).
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from proactor.engine.kv import PagePool


def lease_name(ids: Ids[int]) -> int:
    """The name of the lease of these tokens. Equal samples share one, which ends with the first of them."""
    return hash(tuple(ids))


@dataclass(slots=True, frozen=True)
class _Lease:
    session: int
    namespace: Hashable
    pages: list[int]


class Parking:
    """Leases over a pool's pages, oldest first."""

    def __init__(self, pool: PagePool, cap: int) -> None:
        self.pool, self.cap = pool, cap
        self._leases: dict[int, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def park(self, session: int, namespace: Hashable, ids: Ids[int], spare: int) -> None:
        """Keep the pages of ``ids``. No lease begins where `PagePool.available` would fall by more than
        ``spare``.
        """
        name = lease_name(ids)
        self.release(name)
        pages = self.pool.hold(namespace, ids, spare)
        if pages:
            self._leases[name] = _Lease(session, namespace, pages)
        while self.pool.held > self.cap:
            self.drop_oldest()

    def release(self, name: int) -> None:
        """End a lease, if it is still there."""
        lease = self._leases.pop(name, None)
        if lease is not None:
            self.pool.let_go(lease.pages)

    def drop_oldest(self) -> bool:
        """End the oldest lease. False if there is none."""
        name = next(iter(self._leases), None)
        if name is None:
            return False
        self.release(name)
        return True

    def forget(self, session: int) -> None:
        """End the leases of a session."""
        for name in [name for name, lease in self._leases.items() if lease.session == session]:
            self.release(name)

    def drop_namespace(self, namespace: Hashable) -> None:
        """End the leases on a namespace, whose weights have changed."""
        for name in [name for name, lease in self._leases.items() if lease.namespace == namespace]:
            self.release(name)
