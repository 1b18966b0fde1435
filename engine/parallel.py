"""Data-parallel training on torch.distributed: groups dealt to ranks, one all-reduce a step."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from proactor.engine.types import EngineError
from proactor.kernels.errors import ProactorError

T = TypeVar("T")


class Parallel:
    """This process among the ranks. Under ``torchrun`` (RANK and WORLD_SIZE set) it joins the process group;
    otherwise it is the only rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        self.owns_group = False
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
            self.owns_group = True
            # gloo's threads must end before the interpreter does: a process that exits with them may abort
            atexit.register(self.release)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over ranks in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def reduce(
        self, sums: dict[str, float], maxima: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and maxima of named numbers over ranks. Every rank must pass the same names."""
        if self.world_size == 1:
            return sums, maxima
        total = torch.tensor([sums[k] for k in sorted(sums)], dtype=torch.float64, device=self.device)
        top = torch.tensor([maxima[k] for k in sorted(maxima)], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        reduced_sums = dict(zip(sorted(sums), total.tolist(), strict=True))
        return reduced_sums, dict(zip(sorted(maxima), top.tolist(), strict=True))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite ``tensor`` on every rank with rank 0's."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list of whole units: every ``world_size``-th, from ``rank``."""
        return list(items[self.rank :: self.world_size])

    def gather(self, value: T) -> list[T]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        out: list[T | None] = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block without collectives that fails on every rank or on none, so that no rank waits for another.

        An exception on one rank leaves the block there; the others then raise an EngineError that names that
        rank and its reason. Every rank must run the block.
        """
        try:
            yield
        except Exception as error:
            self.gather(describe(error))
            raise
        for rank, reason in enumerate(self.gather("")):
            if reason:
                raise EngineError(f"rank {rank}: {reason}")

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def release(self) -> None:
        """Leave the process group if this object joined it."""
        if self.owns_group:
            dist.destroy_process_group()
            self.owns_group = False


def describe(error: Exception) -> str:
    """An exception in one line, with its type unless it is a refusal."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ProactorError) else f"{type(error).__name__}: {text}"
