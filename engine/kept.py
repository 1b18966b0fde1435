"""Keys and values of decoding sequences, kept together on a CPU: each step reads them in place.

The pages of a sequence lie anywhere in the cache, and gathering them at every step costs as much as attention
itself. So those of a block are gathered once, and each step appends its tokens. The pages are written as
well: they are what other requests share.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from proactor.engine.blocks import Index
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.decode_attention import additive_mask, decode_attention


class KeptBlock:
    """Keys and values of one block's members in every layer, [2 Hkv, N, room, D], keys first.

    ``order`` [N]: each member's place among the sequences that the block was stacked of, padding members
    included. ``seen``: by place, own tokens of each sequence; ``steps``: further ones with room.
    """

    def __init__(self, block: AttentionBlock, seen: Index, steps: int, page_size: int, layers: int) -> None:
        self.block, self.page_size = block, page_size
        self.order: Index = block.rows.reshape(-1).numpy()
        self.members = len(self.order)
        pages = -(-(int(seen[self.order].max()) + steps) // page_size)
        self.room = max(pages, block.own.shape[2]) * page_size
        self._real = np.ones(self.members, bool)
        if block.valid is not None:
            self._real[:] = False
            self._real[block.valid.numpy()] = True
        self.own: list[Tensor | None] = [None] * layers
        self.context: list[Tensor | None] = [None] * layers
        self.mask: Tensor | None = None
        self.context_mask: Tensor | None = None
        self.place(np.arange(len(seen)))
        self.advance(seen)

    @property
    def tokens(self) -> int:
        """Tokens for which there is room, in all members and contexts."""
        return self.members * self.room + self.block.context.numel() * self.page_size

    def place(self, rows: Index) -> bool:
        """The step's row of each sequence, -1 for one that has left; False if none of this block stays.

        The room of a member that has left repeats one that stays, and what is computed of it is dropped.
        """
        mine = rows[self.order]
        stays = mine >= 0
        if not stays.any():
            return False
        self.source = np.where(stays, self.order, self.order[stays][0])
        mine = rows[self.source]
        self.rows = torch.from_numpy(mine)
        self.in_order = bool((mine == np.arange(self.members)).all())
        real = self._real & stays
        self.valid = None if real.all() else torch.from_numpy(np.flatnonzero(real))
        return True

    def advance(self, seen: Index) -> None:
        """Begin a step, whose tokens come after the ``seen`` own ones of each sequence, by place."""
        seen = seen[self.source]
        self.seen, self.length, self.mask = seen, int(seen.max()) + 1, None
        self.slots = torch.from_numpy(np.arange(self.members) * self.room + seen)

    def write(self, layer: int, new: Tensor, store: Tensor) -> None:
        """Append the rows new [2 Hkv, T, D]; at first gather all from the pages, which have them by now."""
        kept = self.own[layer]
        if kept is None:
            self._gather(layer, store)
            return
        mine = new[:, : self.members] if self.in_order else new.index_select(1, self.rows)
        kept.view(kept.shape[0], -1, kept.shape[3]).index_copy_(1, self.slots, mine)

    def _gather(self, layer: int, store: Tensor) -> None:
        """Copies of the members' pages, and of as many more as there is to be room: they hold numbers."""
        heads, _, width = store.shape
        pages = store.view(heads, -1, self.page_size * width)

        def taken(index: Tensor) -> Tensor:
            members = index.shape[:-1].numel()
            return pages.index_select(1, index.reshape(-1)).view(heads, members, -1, width)

        own = self.block.own.flatten(0, 1)
        more = self.room // self.page_size - own.shape[1]
        self.own[layer] = taken(torch.cat([own, own[:, -1:].expand(-1, more)], 1))
        if self.block.context.shape[1]:
            self.context[layer] = taken(self.block.context)

    def attend(self, layer: int, q: Tensor, scale: float, out: Tensor) -> None:
        """Attention of this block's rows of q [T, Hq, D], into out [T, Hq * D]."""
        own = self.own[layer]
        assert own is not None
        if self.mask is None and self.seen.min() + 1 < self.length:
            hidden = torch.from_numpy(np.arange(self.length) > self.seen[:, None])
            self.mask = additive_mask(hidden, q.dtype)
        if self.context_mask is None and self.block.context_hidden is not None:
            self.context_mask = additive_mask(self.block.context_hidden, q.dtype)
        mine = q[: self.members] if self.in_order else q.index_select(0, self.rows)
        grouped = mine.view(self.members, own.shape[0] // 2, -1, q.shape[2])
        near = own[:, :, : self.length]
        result = decode_attention(
            grouped, near, scale, self.mask, self.context[layer], self.context_mask
        ).reshape(self.members, -1)
        if self.in_order:
            out[: self.members] = result
        elif self.valid is None:
            out.index_copy_(0, self.rows, result)
        else:
            out.index_copy_(0, self.rows[self.valid], result[self.valid])
