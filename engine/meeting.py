"""`Meeting`: ranks send each other messages, and know by name who did not.

Each rank sends its message to every other one and waits for theirs. A rank that ended closes its sockets,
which the others see at once; one that is stuck is late. No rank has a part of its own, so all that are left
name the same ones, and none depends on another to hear of it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from proactor.engine.types import EngineError, one_line

T = TypeVar("T")

GRACE = 5.0
"""Seconds beyond all time-outs of a call after which it is given up."""

_numbers = itertools.count()
_open: list[Meeting] = []
"""Those of this process that were not closed: several engines share one process group."""


class RankError(EngineError):
    """Another rank refused, failed, ended or is stuck. Every rank that is left raises it."""


class Meeting:
    """The ranks of a process group, over gloo sockets of their own: a failed collective does not close them.

    ``timeout``: seconds to wait for a rank. Every rank must make it. Raises RankError where not all do so in
    time. ``device``: this rank's GPU, to which its collectives are bound. ``lost``: why the ranks cannot meet
    any more, which every later exchange raises. ``store``: the process group's; it lies with rank 0, or with
    torchrun's agent. ``name``: this meeting's in it. ``queues``: how many work queues were put there.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        backend: str,
        timeout: float,
        device: torch.device | None = None,
    ) -> None:
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.owns_world = not dist.is_initialized()
        self.lost, self.queues, self.name = "", 0, f"meeting/{next(_numbers)}"
        limit = timedelta(seconds=timeout)

        def join() -> Any:
            if self.owns_world:
                dist.init_process_group(backend, timeout=limit, device_id=device)
            self.store = dist.distributed_c10d._get_default_store()
            return dist.new_group(backend="gloo", timeout=limit)

        try:
            self.group = self.wait_for(join)
        except (RuntimeError, TimeoutError) as error:
            raise RankError(
                f"rank {rank}: not all {world_size} ranks joined within {timeout:g} s (engine.rank_timeout): "
                f"{one_line(error)[:160]}"
            ) from error
        _open.append(self)

    def exchange(self, message: bytes, phase: str) -> list[bytes]:
        """Every rank's message, in rank order. Raises RankError naming ``phase`` and the ranks that ended or
        are late.
        """
        if self.lost:
            raise RankError(self.lost)
        missing: dict[int, str] = {}
        try:
            found = self.wait_for(lambda: self._swap_all(message, missing))
        except TimeoutError as error:
            self.lost = f"{phase}: {error}"
            raise RankError(self.lost) from error
        if missing:
            self.lost = f"{phase}: {self._name(missing)}"
            raise RankError(self.lost)
        return [found[rank] for rank in range(self.world_size)]

    def wait_for(self, call: Callable[[], T], limit: float | None = None) -> T:
        """The result of a call that may block outside Python; raises what it raises.

        It runs in a thread of its own: here, where the process waits, signals are still answered. Raises
        TimeoutError for a call that takes more than ``limit`` seconds, by default its own time-outs.
        """
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answer.put((call(), None))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                answer.put((None, error))

        threading.Thread(target=run, name="ranks", daemon=True).start()
        if limit is None:  # each call waits twice: for sizes and messages, to join and to open
            limit = 2 * self.timeout + GRACE
        try:
            result, error = answer.get(timeout=limit)
        except Empty:
            raise TimeoutError(f"no end within {limit:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _swap_all(self, message: bytes, missing: dict[int, str]) -> dict[int, bytes]:
        """Sizes first, then, unless a rank is ``missing``, the messages.

        After a time-out gloo closes every socket of the group, so that a second round would blame others.
        """
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        sizes = {rank: torch.zeros(1, dtype=torch.int64) for rank in others}
        self._swap(torch.tensor([len(mine)]), sizes, missing)
        if missing:
            return {}
        bodies = {rank: torch.empty(int(size), dtype=torch.uint8) for rank, size in sizes.items()}
        self._swap(mine, bodies, missing)
        return {self.rank: message, **{rank: body.numpy().tobytes() for rank, body in bodies.items()}}

    def _swap(self, mine: Tensor, theirs: Mapping[int, Tensor], missing: dict[int, str]) -> None:
        """Send ``mine`` to the ranks of ``theirs``, which is filled by what they send."""
        started = []
        for rank, buffer in theirs.items():
            with noting(rank, missing):
                started.append((rank, dist.irecv(buffer, rank, group=self.group)))
                started.append((rank, dist.isend(mine, rank, group=self.group)))
        for rank, work in started:
            if work is not None and rank not in missing:
                with noting(rank, missing):
                    work.wait()

    def _name(self, missing: Mapping[int, str]) -> str:
        """Which ranks are missing, and how."""
        late = [rank for rank, reason in sorted(missing.items()) if "timed out" in reason.lower()]
        ended = sorted(missing.keys() - set(late))
        parts = []
        if ended:
            parts.append(f"{_ranks(ended)} ended")
        if late:
            parts.append(f"{_ranks(late)} not heard of for {self.timeout:g} s (engine.rank_timeout)")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the process group if a meeting joined it and this is the last one."""
        if self in _open:
            _open.remove(self)
        if self.owns_world:
            self.owns_world = False
            if _open:
                _open[0].owns_world = True
            else:
                dist.destroy_process_group()


@contextmanager
def noting(rank: int, missing: dict[int, str]) -> Iterator[None]:
    """Keep torch's reason for which ``rank`` cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        missing[rank] = one_line(error)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
