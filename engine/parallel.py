"""Data-parallel training on torch.distributed: groups dealt to ranks, one all-reduce a step.

All that ranks tell each other goes through one meeting of all of them (`Parallel.gather`), a refusal too: it
reaches the others at whatever place they wait. Only gradients are summed by a collective, once all have met.
"""

from __future__ import annotations

import atexit
import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from proactor.engine.meeting import Meeting, RankError
from proactor.engine.types import one_line
from proactor.kernels.errors import ProactorError

T = TypeVar("T")


def larger(a: float, b: float) -> float:
    """The larger number; NaN where either is."""
    return b if b > a or math.isnan(b) else a


class Message(NamedTuple):
    """What a rank tells the others: where it is, why it fails ("" where it does not), and a value."""

    phase: str
    failure: str
    value: Any


class Parallel:
    """This process among the ranks. Under ``torchrun`` (RANK and WORLD_SIZE set) it joins the process group;
    otherwise it is the only rank.

    ``timeout``: seconds that it waits for the others. Raises RankError where they do not join in that time.
    """

    def __init__(self, device: torch.device, timeout: float = 600.0) -> None:
        self.rank, self.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        self.meeting: Meeting | None = None
        if self.world_size > 1:
            on_gpu = device.type == "cuda"
            backend, bound = ("cpu:gloo,cuda:nccl", device) if on_gpu else ("gloo", None)
            self.meeting = Meeting(self.rank, self.world_size, backend, timeout, bound)
            # gloo's threads must end before the interpreter does: a process that exits with them may abort
            atexit.register(self.release)

    def sum(self, tensor: Tensor, phase: str = "sum") -> Tensor:
        """Sum ``tensor`` over ranks in place. Raises RankError as `gather` does."""
        if self.meeting is None:
            return tensor
        self.gather(None, phase)
        if (
            tensor.is_cuda
        ):  # NCCL is only queued here, and ends a process that waits for more than the time-out
            dist.all_reduce(tensor)
            return tensor
        try:
            self.meeting.wait_for(lambda: dist.all_reduce(tensor))
        except (RuntimeError, TimeoutError) as error:
            self.gather(None, phase)  # names the rank, unless all are there
            raise RankError(f"{phase}: {one_line(error)}") from error
        return tensor

    def reduce(
        self, sums: Mapping[str, float], maxima: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and maxima of named numbers over the ranks that have them."""
        ranks = self.gather((dict(sums), dict(maxima)), "statistics")
        total: dict[str, float] = {}
        top: dict[str, float] = {}
        for theirs, most in ranks:
            for name, value in theirs.items():
                total[name] = total.get(name, 0.0) + value
            for name, value in most.items():
                top[name] = larger(top.get(name, value), value)
        return total, top

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list of whole units: every ``world_size``-th, from ``rank``."""
        return list(items[self.rank :: self.world_size])

    def gather(self, value: T, phase: str = "gather") -> list[T]:
        """Every rank's picklable ``value``, in rank order, on every rank.

        ``phase`` says in errors what the ranks met for. Raises RankError where another rank failed, ended, is
        late, or came for something else.
        """
        if self.meeting is None:
            return [value]
        messages = self._meet(Message(phase, "", value))
        for rank, message in enumerate(messages):
            if message.failure:
                raise RankError(f"rank {rank}: {message.failure}")
        if any(message.phase != phase for message in messages):
            raise RankError(f"ranks met for different things: {', '.join(m.phase for m in messages)}")
        return [message.value for message in messages]

    @contextmanager
    def together(self, phase: str = "together") -> Iterator[None]:
        """A block that fails on every rank or on none, so that no rank waits for another.

        Where an exception leaves the block on one rank, the others raise a RankError with that rank and its
        reason: where they wait inside the block, or at its end. So does that rank, where it is a refusal; any
        other error stays itself there. What all ranks refuse alike stays itself too. Every rank must run the
        block.
        """
        try:
            yield
        except RankError:
            raise  # all know it
        except Exception as error:
            if getattr(error, "told", False):  # by a block inside this one
                raise
            error.told = True  # type: ignore[attr-defined]
            reasons = self._tell(phase, describe(error))
            if isinstance(error, ProactorError) and len(set(reasons)) > 1:
                rank = next(rank for rank, reason in enumerate(reasons) if reason)
                raise RankError(f"rank {rank}: {reasons[rank]}") from error
            raise
        self.gather(None, phase)

    def _tell(self, phase: str, failure: str) -> list[str]:
        """Tell the others why this rank fails; returns every rank's reason, "" where it has none."""
        if self.meeting is None:
            return [failure]
        try:
            return [message.failure for message in self._meet(Message(phase, failure, None))]
        except RankError:  # they are gone; the failure here says more
            return [failure]

    def _meet(self, message: Message) -> list[Message]:
        assert self.meeting is not None
        parts = self.meeting.exchange(pickle.dumps(message), message.phase)
        return [pickle.loads(part) for part in parts]  # nosec B301 # from this run's own ranks

    def barrier(self, phase: str = "barrier") -> None:
        """Wait for every rank."""
        self.gather(None, phase)

    def release(self) -> None:
        """Leave the process group if it was joined here and nobody else in this process needs it."""
        atexit.unregister(self.release)
        if self.meeting is not None:
            self.meeting.close()


def describe(error: Exception) -> str:
    """An exception in one line, with its type unless it is a refusal or names a file."""
    if isinstance(error, ProactorError):
        return one_line(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {one_line(error)}"
