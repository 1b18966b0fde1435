"""The KV cache as tensors, and the attention view of one sampler step over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proactor.engine.blocks import Index, chunk_families, stack
from proactor.engine.config import EngineConfig
from proactor.engine.decode_rows import KeptRows, PagedRows
from proactor.engine.footprint import token_bytes
from proactor.engine.kept import KeptBlock
from proactor.engine.memory import gib, naming_shortage
from proactor.engine.model_config import ModelConfig
from proactor.engine.step import Chunk, Step
from proactor.engine.tables import ChunkTables, DecodeTables, TableView
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.op import on_gpu, use_triton
from proactor.kernels.rope import full_angles, rotate_, rotate_heads
from proactor.kernels.tree_attention import attend

CPU_KV_BYTES = 1 << 30
"""Largest cache where no number of tokens is given: on a CPU, which commits memory page by page."""


def cache_pages(tokens: int | None, options: EngineConfig, config: ModelConfig, dtype: torch.dtype) -> int:
    """Pages of a KV cache of ``tokens``, rounded up; None: as `EngineConfig.kv_tokens` says for a CPU."""
    size = options.page_size
    if tokens is not None:
        return -(-tokens // size)
    wanted = options.max_batch * -(-config.context_length // size)
    return max(1, min(wanted, CPU_KV_BYTES // PagedCache.page_bytes(config, size, dtype)))


class PagedCache:
    """Keys and values of every layer, each [Hkv, pages * page_size, D]: ``k`` and ``v``, the two halves of
    ``kv``. Zero-filled: a CPU then commits memory only for pages that are written. ``in_triton``: whether
    kernels read them.
    """

    def __init__(
        self, config: ModelConfig, pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = (config.num_kv_heads, pages * page_size, config.head_dim)
        self.page_size, self.layers, self.dtype, self.device = page_size, config.num_layers, dtype, device
        self.kv: list[Tensor] = []
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.allocate()
        self.in_triton = use_triton(self.k[0])

    def allocate(self) -> None:
        """Take the memory, unless the cache has it. Raises EngineError where it is not there."""
        if len(self.kv) == self.layers:
            return
        size = gib(2 * self.layers * math.prod(self.shape) * self.dtype.itemsize)
        with naming_shortage(self.device, f"a KV cache of {size}", "set kv_tokens to fewer"):
            while len(self.kv) < self.layers:
                heads, *rest = self.shape
                both = torch.zeros((2 * heads, *rest), dtype=self.dtype, device=self.device)
                self.kv.append(both)
                self.k.append(both[:heads])
                self.v.append(both[heads:])

    def release(self) -> None:
        """Give the memory back, and forget what it held."""
        for stores in (self.kv, self.k, self.v):
            stores.clear()

    @staticmethod
    def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
        """Bytes of one page over all layers, keys and values."""
        return page_size * token_bytes(config, dtype.itemsize)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers, keys and values."""
        return 2 * self.layers * self.shape[0] * self.shape[2] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(t.nbytes for t in self.kv)

    def prepare(self, step: Step) -> None:
        """Clear the pages allocated since the last step, then carry out the step's copies.

        Slots that are not written yet then hold finite numbers. The torch forms need that: they give hidden
        keys almost no weight, and any weight times NaN is NaN. The Triton kernels do not read them.
        """
        if not self.in_triton and (fresh := self._fresh(step)):
            slots = self._slots([(page, self.page_size) for page in fresh])
            for t in self.kv:
                t.index_fill_(1, slots, 0)
        if step.copies:
            source = self._slots([(page, count) for page, _, count in step.copies])
            target = self._slots([(page, count) for _, page, count in step.copies])
            for t in self.kv:
                t.index_copy_(1, target, t.index_select(1, source))

    def _fresh(self, step: Step) -> list[int]:
        """The pages allocated for a step."""
        fresh = [page for _, page, _ in step.copies]
        fresh += [step.decodes[i].block_table[-1] for i in step.grown]
        for chunk in step.prefills:
            end = chunk.start + len(chunk.ids)
            fresh += chunk.block_table[-(-chunk.start // self.page_size) : -(-end // self.page_size)]
        return fresh

    def _slots(self, runs: Sequence[tuple[int, int]]) -> Tensor:
        """Slots of the first n tokens of each (page, n)."""
        slots = [torch.arange(page * self.page_size, page * self.page_size + n) for page, n in runs]
        return torch.cat(slots).to(self.k[0].device)


class PagedView:
    """Attention of one step: decode rows first, then the rows of prompt chunks.

    ``kept``: what is kept of the decode rows; the other rows are those of ``blocks``, in order.
    """

    def __init__(
        self,
        cache: PagedCache,
        kept: list[KeptBlock],
        blocks: list[AttentionBlock],
        slots: Tensor,
        scale: float,
        exact: bool,
    ) -> None:
        self.cache, self.kept, self.blocks, self.slots = cache, kept, blocks, slots
        self.scale, self.exact = scale, exact
        self._angles: tuple[Tensor, Tensor] | None = None

    def rotate(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q of qkv [T, Hq + 2 Hkv, D], rotated; k and v are written. Deterministic mode: q, k and v."""
        kv_heads = self.cache.shape[0]
        if self.exact:
            return rotate_heads(qkv, kv_heads, cos, sin)
        if self._angles is None:
            self._angles = full_angles(cos, sin)
        rotated = qkv.shape[1] - kv_heads
        rotate_(qkv[:, :rotated], *self._angles)
        self._write(layer, qkv[:, rotated - kv_heads :])
        return qkv[:, : rotated - kv_heads], None, None

    def attend(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """Write keys and values to their slots, then read all: rows of one step may see one another."""
        if k is not None and v is not None:
            self._write(layer, torch.cat([k, v], 1))
        if self.blocks:
            keys, values = self.cache.k[layer], self.cache.v[layer]
            out = attend(q, keys, values, self.blocks, self.scale, self.cache.page_size, self.exact)
        else:
            out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        for block in self.kept:
            block.attend(layer, q, self.scale, out)
        return out

    def _write(self, layer: int, kv: Tensor) -> None:
        """Keys and values kv [T, 2 Hkv, D] to their slots, and to what is kept."""
        new, store = kv.transpose(0, 1), self.cache.kv[layer]
        store.index_copy_(1, self.slots, new)
        for block in self.kept:
            block.write(layer, new, store)


class StepRows:
    """Turns planned steps into row tensors and an attention view; reuses a decode set's tensors."""

    def __init__(self, cache: PagedCache, scale: float, exact: bool) -> None:
        self.cache, self.scale, self.exact = cache, scale, exact
        self.device = cache.device
        self._roster = -1
        self._decode: PagedRows | KeptRows | DecodeTables | None = None
        keeps = not (exact or cache.in_triton or on_gpu(cache.device))
        self._kept = KeptRows(cache.page_size, cache.layers, cache.token_bytes) if keeps else None

    def forget(self) -> None:
        """Let go of the decode set, with what is kept of it."""
        self._decode = None
        if self._kept is not None:
            self._kept.forget()

    def build(self, step: Step) -> tuple[Tensor, Tensor, PagedView | TableView]:
        """(ids, positions, view) of a step's rows."""
        size = self.cache.page_size
        parts = []
        if step.decodes:
            decode = self._decode_rows(step)
            where, slot = decode.refresh()
            if isinstance(decode, DecodeTables) and not step.prefills:
                return decode.ids, decode.positions, self._view(step, decode.slots)
            drawn = np.fromiter((d.input_id for d in step.decodes), np.int64, len(step.decodes))
            parts.append(np.stack([drawn, where, slot]))
        for chunk in step.prefills:
            where = np.arange(chunk.start, chunk.start + len(chunk.ids))
            parts.append(np.stack([chunk.ids, where, chunk_slots(chunk, where, size)]))
        ids, positions, slots = _rows(parts, self.device)
        return ids, positions, self._view(step, slots)

    def _decode_rows(self, step: Step) -> PagedRows | KeptRows | DecodeTables:
        """The tensors of the step's decode set: those of the last step, updated, or new ones."""
        if self._kept is not None and self._kept.follow(step):
            self._decode = self._kept
        elif not self.cache.in_triton:
            if not isinstance(self._decode, PagedRows) or not self._decode.serves(step):
                self._decode = PagedRows(step, self.cache.page_size)
        elif isinstance(self._decode, DecodeTables) and step.roster == self._roster:
            self._decode.grow(step.grown)
        else:
            self._roster = step.roster
            self._decode = DecodeTables(step.decodes, self.cache.page_size, self.device)
        return self._decode

    def _view(self, step: Step, slots: Tensor) -> PagedView | TableView:
        size, decode = self.cache.page_size, self._decode if step.decodes else None
        if self.cache.in_triton:
            assert decode is None or isinstance(decode, DecodeTables)
            chunks = ChunkTables(step.prefills, size, self.device) if step.prefills else None
            return TableView(self.cache.k, self.cache.v, slots, decode, chunks, self.scale)
        first, families = len(step.decodes), []
        for chunk in step.prefills:
            rows = np.arange(first, first + len(chunk.ids))
            families.extend(chunk_families(chunk.block_table, size, chunk.start, rows))
            first += len(chunk.ids)
        blocks = stack(families, size)
        kept = decode.blocks if isinstance(decode, KeptRows) else []
        if isinstance(decode, PagedRows):
            blocks = [*decode.blocks, *blocks]
        on_device = [block.to(self.device) for block in blocks]
        return PagedView(self.cache, kept, on_device, slots, self.scale, self.exact)


def _rows(parts: Sequence[Index], device: torch.device) -> list[Tensor]:
    """The rows of [3, T] that ``parts`` make side by side, as contiguous tensors, uploaded at once.

    Each begins at a multiple of 16 bytes, since Triton compiles a kernel anew for other addresses.
    """
    count = sum(part.shape[1] for part in parts)
    joined = np.zeros((3, -(-count // 2) * 2), np.int64)
    np.concatenate(parts, axis=1, out=joined[:, :count])
    return list(torch.from_numpy(joined).to(device)[:, :count].unbind())


def chunk_slots(chunk: Chunk, positions: Index, page_size: int) -> Index:
    """Cache slots of a chunk's tokens."""
    table = np.asarray(chunk.block_table, np.int64)
    return table[positions // page_size] * page_size + positions % page_size
