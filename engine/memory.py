"""Budgets from the memory of a GPU: tokens of KV, rows of a pass, and a refusal where a model cannot fit.

What is free beside a model is one arena, which two kinds of work use in turn: sampling (the KV cache and the
rows of a step) and training (the activations of a tree). A tree that does not fit beside the cache frees it
first (`Policy.make_room`): the step that follows would make the cached KV stale anyway.

A CPU has fixed defaults: nothing here asks it what is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from proactor.engine.chunks import most_kept
from proactor.engine.config import EngineConfig
from proactor.engine.footprint import COLUMNS, Footprint
from proactor.engine.lora_config import LoRA
from proactor.engine.model_config import ModelConfig
from proactor.engine.packing import pack
from proactor.engine.reading import read_regular
from proactor.engine.tree import Tree
from proactor.engine.types import EngineError, Group
from proactor.kernels.paged_attention import SPLIT

ROWS, MOST_ROWS = 8192, 16384
"""Rows that a pass aims at: of a sampler step and on a CPU; of a tree on a GPU that has the memory."""
UNLIMITED = (1 << 31) - 1
"""Rows of a chunk where nothing but memory limits them."""
LEAST_TOKENS, LEAST_ROWS = 2048, 512
"""A model fits a GPU if so much KV, and a tree of so many rows, fit beside it (or a whole context)."""
AGAIN = 0.5
"""What a row costs without gradient, beside one with: a forward without its backward, which takes as long,
because frozen linears have no weight gradient."""
STEP_SHARE = 8
"""The rows of a sampler step get one part in so many of the arena."""


class Memory(NamedTuple):
    """Bytes of a device."""

    free: int
    total: int


def device_memory(device: torch.device) -> Memory | None:
    """What this process can still allocate, and the whole; None for a CPU, whose budgets are fixed."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(free + unused, total)


def reserve_bytes(total: int) -> int:
    """What budgets leave free, for cuBLAS, kernels, and the allocator's rounding and gaps (not measured)."""
    return (1 << 30) + total // 32


@dataclass(frozen=True, slots=True)
class Budgets:
    """What an engine may use.

    ``rows``: that a tree aims at. ``step_rows``: of a sampler step, and of a tree without gradient.
    ``tokens`` of KV; None: what a CPU is given. ``arena``: bytes that passes and the KV cache have between
    them, and ``footprint``: what they take; on a CPU nothing is known of either. ``chunk``: most rows that
    are computed with gradient at a time.
    """

    rows: int
    step_rows: int
    tokens: int | None = None
    arena: int = 0
    footprint: Footprint | None = None
    chunk: int = UNLIMITED

    @classmethod
    def fixed(cls, options: EngineConfig) -> Budgets:
        """Those of a CPU."""
        rows = options.token_budget or ROWS
        return cls(rows, max(rows, options.max_batch), options.kv_tokens, chunk=options.chunk_rows or rows)

    def most_rows(self, gradient: bool) -> int | None:
        """Rows of the largest tree that can be computed, whatever its form; None where nothing is known to be
        too much. With gradient in chunks, if that takes it further.
        """
        f = self.footprint
        if f is None:
            return None
        whole = f.most_rows(self.arena, gradient)
        in_chunks = (self.arena - f.pass_bytes(self._least, True)) // (f.kept_row + COLUMNS)
        return max(whole, in_chunks) if gradient else whole

    def fits(self, rows: int, kept: int, gradient: bool) -> bool:
        """Whether a tree of ``rows`` can be computed, at most ``kept`` of which other rows see."""
        f = self.footprint
        if f is None or rows <= f.most_rows(self.arena, gradient):
            return True
        least = f.pass_bytes(self._least, True)
        return gradient and self._kept_bytes(rows, kept) + least <= self.arena

    def chunk_rows(self, rows: int, kept: int) -> int:
        """How many of a tree's ``rows`` are computed with gradient at a time: all of them, or a chunk.

        ``kept``: at most so many of them are seen by other chunks.
        """
        f = self.footprint
        if f is None:
            return self.chunk
        if rows <= min(self.chunk, f.most_rows(self.arena, gradient=True)):
            return rows
        room = self.arena - self._kept_bytes(rows, kept)
        return max(1, min(self.chunk, f.most_rows(room, gradient=True)))

    def kept(self, tree: Tree) -> int:
        """Rows of a tree that may be seen by other chunks (`most_kept`)."""
        return most_kept(tree, self._least)

    def chunk_of(self, tree: Tree) -> int:
        """`chunk_rows` of a tree."""
        return self.chunk_rows(tree.rows, self.kept(tree))

    def pack(self, groups: Sequence[Group], gradient: bool, exact: bool) -> list[Tree]:
        """The trees of ``groups`` for passes with or without ``gradient``; ``exact``: deterministic mode, in
        which no tree depends on other groups. A group that does not fit is split.
        """

        def fits(tree: Tree) -> bool:
            return self.fits(tree.rows, self.kept(tree), gradient)

        if not gradient:
            return pack(groups, min(self.rows, self.step_rows), not exact, fits)
        return pack(groups, self.rows, not exact, fits, self.cost)

    def cost(self, tree: Tree) -> float:
        """What a tree's gradient takes, in rows of one pass: by turns, rows that others see count again.

        Infinite for a pass above what a CPU's trees aim at: nothing is known of its memory.
        """
        kept = self.kept(tree)
        if tree.rows > self.chunk_rows(tree.rows, kept):
            return tree.rows + AGAIN * kept
        return tree.rows if self.footprint is not None or tree.rows <= self.rows else math.inf

    @property
    def _least(self) -> int:
        return min(LEAST_ROWS, self.chunk)

    def _kept_bytes(self, rows: int, kept: int) -> int:
        f = self.footprint
        return 0 if f is None else kept * f.kept_row + rows * COLUMNS

    def tree_bytes(self, rows: int, kept: int, gradient: bool) -> int:
        """Bytes of a pass over a tree, in chunks where it is computed so; 0 on a CPU."""
        if self.footprint is None:
            return 0
        chunk = min(rows, self.chunk_rows(rows, kept)) if gradient else rows
        beside = self._kept_bytes(rows, kept) if chunk < rows else 0
        return self.footprint.pass_bytes(chunk, gradient) + beside

    def fits_beside(self, cache: int, rows: int, kept: int, gradient: bool) -> bool:
        """Whether a pass over a tree fits beside a KV cache of ``cache`` bytes."""
        return self.footprint is None or cache + self.tree_bytes(rows, kept, gradient) <= self.arena


@dataclass(frozen=True, slots=True)
class Planner:
    """Budgets of one model on one GPU. ``where`` opens the refusals; ``context``: the model's, in tokens."""

    footprint: Footprint
    options: EngineConfig
    context: int
    where: str

    @property
    def trains(self) -> bool:
        """Whether there is an adapter to train."""
        return self.footprint.adapter > 0

    def plan(self, memory: Memory) -> Budgets:
        """Budgets where ``memory.free`` is what the model and its passes have together.

        Raises EngineError for a model that does not fit, and for a ``kv_tokens`` or ``token_budget`` that
        does not fit beside it.
        """
        arena = memory.free - self.footprint.held - reserve_bytes(memory.total)
        if arena < self.least_arena():
            raise EngineError(self._too_small(memory))
        least, share = self._step_bytes(0), self._step_bytes(arena)
        tokens = self.options.kv_tokens
        if tokens is None:
            tokens = min(
                self._tokens(arena - share), self._whole_pages(self.context) * self.options.max_batch
            )
        else:
            self._refuse_tokens(tokens, arena - least)
            share = min(share, arena - self.cache_bytes(self._whole_pages(tokens)))
        step_rows = (share - least) // self.footprint.row + self.options.max_batch
        rows = self._rows(self.footprint.most_rows(arena, self.trains))
        chunk = self.options.chunk_rows or self.options.token_budget or UNLIMITED
        return Budgets(rows, step_rows, tokens, arena, self.footprint, chunk)

    def least_arena(self) -> int:
        """Bytes beside the model below which it is refused."""
        rows = min(LEAST_ROWS, self.context)
        tokens = self.options.kv_tokens or min(LEAST_TOKENS, self.context)
        cache = self.cache_bytes(self._whole_pages(min(LEAST_TOKENS, tokens)))
        shared = max(self._step_bytes(0) + cache, cache + cache // (STEP_SHARE - 1) + 1)
        return max(self.footprint.loading, shared, self.footprint.pass_bytes(rows, self.trains))

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of a KV cache, and of the partial sums while it is read."""
        return tokens * self.footprint.token + min(tokens, self.context) * self._parts

    @property
    def _parts(self) -> int:
        return -(-self.options.max_batch * self.footprint.parts // SPLIT)

    def _step_bytes(self, arena: int) -> int:
        """What a sampler step takes of ``arena``: from one row a sequence up to all rows that it aims at."""
        f, batch = self.footprint, self.options.max_batch
        fixed = f.product + max(f.head, batch * f.logits)
        wanted = max(self.options.token_budget or ROWS, batch)
        return max(min(arena // STEP_SHARE, fixed + wanted * f.row), fixed + batch * f.row)

    def _whole_pages(self, tokens: int) -> int:
        return -(-tokens // self.options.page_size) * self.options.page_size

    def _tokens(self, room: int) -> int:
        """Tokens of KV, in whole pages, whose `cache_bytes` fit in ``room``."""
        most = room // (self.footprint.token + self._parts)
        if most > self.context:
            most = (room - self.context * self._parts) // self.footprint.token
        return most // self.options.page_size * self.options.page_size

    def _refuse_tokens(self, tokens: int, room: int) -> None:
        most = self._tokens(room)
        if self._whole_pages(tokens) > most:
            raise EngineError(
                f"kv_tokens={tokens}: a cache of {gib(self.cache_bytes(tokens))}, and {self.where} leaves "
                f"{gib(room)} for it: set at most {most}, or leave it out"
            )

    def _rows(self, most: int) -> int:
        wanted = self.options.token_budget
        if wanted is not None and wanted > most:
            size = gib(self.footprint.pass_bytes(wanted, self.trains))
            raise EngineError(
                f"token_budget={wanted}: a pass of {size}, more than {self.where} leaves for it: set at most "
                f"{most}, or leave it out"
            )
        return wanted or min(most, MOST_ROWS)

    def _too_small(self, memory: Memory) -> str:
        f, working = self.footprint, self.least_arena() + reserve_bytes(memory.total)
        need = f.held + working
        parts = f"weights {gib(f.weights)}, adapter and optimizer {gib(f.adapter + f.optimizer)}"
        if need <= memory.total - (1 << 30):
            advice = "others hold the rest: end them (nvidia-smi lists them) or set device to another GPU"
        elif f.product:
            advice = "take a smaller model or a larger GPU"
        else:
            advice = "keep it in 4 bits (quantization and resident: nf4), or take a larger GPU"
        return (
            f"{self.where}: needs at least {gib(need)} ({parts}, least cache or tree {gib(working)}), and "
            f"{gib(memory.free)} of {gib(memory.total)} are free: {advice}"
        )


def gib(size: float) -> str:
    """Bytes for a message."""
    return f"{size / 2**30:.1f} GiB"


HOST_SHARE = 0.7
"""Part of a machine's available memory that a model may hold; the rest is for the cache and activations."""


def host_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not say (`/proc/meminfo`)."""
    try:
        lines = read_regular("/proc/meminfo").decode().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return found[0] << 10 if found else None


def fits_host(
    config: ModelConfig, loras: Sequence[LoRA], dtype: torch.dtype, resident: str, name: str
) -> bool:
    """Whether the 4-bit linears of a model on the CPU are held dense: as asked, or ("auto") where it fits.

    Raises EngineError, before anything is read, for a model that is larger than the available memory.
    """
    free = host_memory()
    dense, nf4 = (Footprint.of(config, loras, kept, dtype).held for kept in (False, True))
    held = resident == "dense" or (resident == "auto" and (free is None or dense <= HOST_SHARE * free))
    need = dense if held else nf4
    if free is not None and need > free:
        better = "set dtype to bfloat16, or " if dtype == torch.float32 else ""
        better = "leave resident out, or " if held else better
        raise EngineError(
            f"{name} on cpu: needs {gib(need)}, and {gib(free)} are available: {better}take a smaller model"
        )
    return held


NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What the CPU's allocator says."""


@contextmanager
def naming_shortage(device: torch.device, what: str, advice: str) -> Iterator[None]:
    """Turn a lack of memory in the block into an EngineError of one line."""
    try:
        yield
    except RuntimeError as error:  # OutOfMemoryError is one; a CPU's allocator raises no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        memory = device_memory(device)
        left = f" ({gib(memory.free)} of {gib(memory.total)} are free)" if memory else ""
        raise EngineError(f"{what}: out of memory on {device}{left}: {advice}") from error
