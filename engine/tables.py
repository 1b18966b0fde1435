"""A sampler step for the GPU kernels: block tables and lengths as tensors, and the attention view over them.

Decode rows that share a request's prompt form a family, whose shared pages are read once. A chunk of a prompt
is a run of rows, each with a visible length. Tables are rebuilt when a sequence joins or leaves; in between,
new pages are written into them and the rows' tensors are overwritten in place, by one upload a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.engine.step import Chunk, Decode
from proactor.kernels.kv_write import rope_into_pages
from proactor.kernels.paged_attention import paged_attention, paged_rows_attention, shared_prefix_attention
from proactor.kernels.paged_kernels import RowGroups

WIDTH = 16
"""Tables are padded to a multiple of so many pages: Triton specialises kernels on divisibility by 16."""


def _table(tables: Sequence[Sequence[int]], room: int = 0) -> NDArray[np.int32]:
    """Tables of pages as one array [N, P], with ``room`` for more pages; P is 0 for empty tables."""
    longest = max((len(t) for t in tables), default=0) + room
    padded = np.zeros((len(tables), -(-longest // WIDTH) * WIDTH), np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded


class DecodeTables:
    """Tables of a decode set: each sequence's own pages, and the pages that one request's samples share.

    ``ids``, ``positions``, ``slots`` (int64 [B]) and ``lengths`` (int32 [B]) are those of the last `refresh`.
    """

    def __init__(self, decodes: Sequence[Decode], page_size: int, device: torch.device) -> None:
        self.decodes, self.page_size, self.device = decodes, page_size, device
        groups: dict[tuple[int, int], list[int]] = {}
        for i, d in enumerate(decodes):
            groups.setdefault(d.family, []).append(i)
        firsts = [decodes[rows[0]] for rows in groups.values()]
        self._host = _table([d.block_table[d.shared_pages :] for d in decodes], room=1)
        self.own = torch.tensor(self._host, device=device)
        self.prefix = torch.tensor(_table([d.block_table[: d.shared_pages] for d in firsts]), device=device)
        shared = [d.shared_pages * page_size for d in firsts]
        self.prefix_lengths = torch.tensor(shared, dtype=torch.int32, device=device)
        self.families = RowGroups.of(list(groups.values()))
        self.shared = np.asarray([d.shared_pages * page_size for d in decodes], np.int32)
        # rows of 16 bytes' multiples: Triton compiles a kernel anew for other addresses
        self._rows = np.zeros((4, -(-len(decodes) // 2) * 2), np.int64)
        self._here = tuple(self._rows[:3, : len(decodes)])
        self._moving = self._rows[1:3, : len(decodes)]  # positions and slots
        self._begun = False
        self._lengths = self._rows[3].view(np.int32)[: len(decodes)]
        self._source = torch.from_numpy(self._rows)
        self._there = torch.empty(self._source.shape, dtype=torch.int64, device=device)
        self.ids, self.positions, self.slots = self._there[:3, : len(decodes)].unbind()
        self.lengths = self._there[3].view(torch.int32)[: len(decodes)]

    def grow(self, grown: Sequence[int]) -> None:
        """Enter the new last page of each sequence in ``grown`` (indices)."""
        for i in grown:
            d = self.decodes[i]
            at = len(d.block_table) - d.shared_pages - 1
            if at >= self._host.shape[1]:
                self._host = np.pad(self._host, ((0, 0), (0, WIDTH)))
                self.own = torch.empty(self._host.shape, dtype=torch.int32, device=self.device)
            self._host[i, at] = d.block_table[-1]
        if grown:
            self.own.copy_(torch.from_numpy(self._host))

    def refresh(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions and write slots of this step's rows, which are uploaded with their ids and lengths.

        Once a step, after `grow`.
        """
        ids, position, slot = self._here
        ids[:] = [d.input_id for d in self.decodes]
        if self._begun:
            self._moving += 1  # every sequence drew one token since
            self._lengths += 1
            assert position[-1] == self.decodes[-1].length - 1, "a step was left out"
            begins = np.flatnonzero(slot % self.page_size == 0)  # beyond its page, the next lies elsewhere
        else:
            self._begun = True
            position[:] = [d.length - 1 for d in self.decodes]
            self._lengths[:] = position - self.shared + 1
            begins = np.arange(len(position))
        if len(begins):
            page, place = np.divmod(position[begins] - self.shared[begins], self.page_size)
            slot[begins] = self._host[begins, page] * np.int64(self.page_size) + place
        self._there.copy_(self._source)
        return position, slot

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q [B, Hq, D] of the decode rows -> [B, Hq * D]."""
        if not self.prefix.shape[1]:
            return paged_attention(q, keys, values, self.own, self.lengths, scale, self.page_size)
        return shared_prefix_attention(
            q,
            keys,
            values,
            self.own,
            self.lengths,
            self.prefix,
            self.prefix_lengths,
            self.families,
            scale,
            self.page_size,
        )


class ChunkTables:
    """Tables of the prompt chunks of one step."""

    def __init__(self, chunks: Sequence[Chunk], page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.table = torch.tensor(_table([c.block_table for c in chunks]), device=device)
        visible = np.concatenate(
            [np.arange(c.start + 1, c.start + len(c.ids) + 1, dtype=np.int32) for c in chunks]
        )
        self.visible = torch.from_numpy(visible).to(device)
        self.sequences = RowGroups.runs([len(c.ids) for c in chunks])

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """q [T, Hq, D] of the chunks' rows -> [T, Hq * D]."""
        return paged_rows_attention(
            q, keys, values, self.table, self.visible, self.sequences, scale, self.page_size
        )


class TableView:
    """Attention of one step: decode rows first, then the rows of prompt chunks."""

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        slots: Tensor,
        decodes: DecodeTables | None,
        chunks: ChunkTables | None,
        scale: float,
    ) -> None:
        self.keys, self.values, self.slots, self.scale = keys, values, slots, scale
        self.decodes, self.chunks = decodes, chunks

    def rotate(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, None, None]:
        """Rotate q and k of qkv [T, Hq + 2 Hkv, D]; keys and values go to their slots in the same pass."""
        q, _, _ = rope_into_pages(qkv.flatten(1), cos, sin, self.slots, self.keys[layer], self.values[layer])
        return q, None, None

    def attend(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """Write keys and values that `rotate` has not written, then read all through the tables."""
        keys, values = self.keys[layer], self.values[layer]
        if k is not None and v is not None:
            keys.index_copy_(1, self.slots, k.transpose(0, 1))
            values.index_copy_(1, self.slots, v.transpose(0, 1))
        count = len(self.decodes.decodes) if self.decodes else 0
        parts = [self.decodes.attend(q[:count], keys, values, self.scale)] if self.decodes else []
        parts += [self.chunks.attend(q[count:], keys, values, self.scale)] if self.chunks else []
        return torch.cat(parts) if len(parts) > 1 else parts[0]
