"""Keys and values of a decode set, kept together on a CPU: each step reads them in place.

The pages of a sequence lie anywhere in the cache, and gathering them at every step costs as much as attention
itself. So they are gathered once, when the set changes or has outgrown its room, and each step appends its
tokens. The pages are written as well: they are what other requests share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proactor.engine.blocks import Index
from proactor.engine.step import Decode
from proactor.kernels.decode_attention import additive_mask, decode_attention
from proactor.kernels.tree_attention import AttentionBlock

SPARE = 16
"""Most tokens a sequence for which there is room, before all are gathered again. Room costs time too."""
KEPT_BYTES = 1 << 28
"""Most bytes to keep; a larger decode set is gathered at every step."""
WORTH = 4
"""Steps that a decode set has to live to be kept: gathering it costs as much as reading its pages thrice."""


class Keeping:
    """Whether decode sets live long enough to be kept, by how long those before them lived."""

    def __init__(self) -> None:
        self._lived = 2.0 * WORTH  # steps, averaged over the last few sets
        self._roster, self._steps = -1, 0

    def pays(self, roster: int, left: int) -> bool:
        """For the set ``roster`` of this step, of which one ends after ``left`` more; call it once a step."""
        if roster != self._roster:
            if self._roster >= 0:
                self._lived += (self._steps - self._lived) / 4
            self._roster, self._steps = roster, 0
        self._steps += 1
        lived = max(self._lived, self._steps)
        return min(lived, left) >= WORTH


def spare_tokens(decodes: Sequence[Decode]) -> int:
    """Steps until the decode set is gathered again."""
    return max(1, min(SPARE, max(d.left for d in decodes)))


class KeptBlock:
    """Keys and values of one block's members in every layer, [2 Hkv, N, room, D], keys first.

    ``seen`` [N]: own tokens of each member before this step, padding members included. ``steps``: for how
    many there is room.
    """

    def __init__(self, block: AttentionBlock, seen: Index, steps: int, page_size: int, layers: int) -> None:
        self.block, self.page_size = block, page_size
        self.members = len(seen)
        self.room = max(int(seen.max()) + steps, block.own.shape[2] * page_size)
        self.rows = block.rows.reshape(-1)
        self.in_order = bool((self.rows == torch.arange(self.members)).all())
        self.own: list[Tensor | None] = [None] * layers
        self.context: list[Tensor | None] = [None] * layers
        self.mask: Tensor | None = None
        self.context_mask: Tensor | None = None
        self.advance(seen)

    @property
    def tokens(self) -> int:
        """Tokens for which there is room, in all members and contexts."""
        return self.members * self.room + self.block.context.numel() * self.page_size

    def advance(self, seen: Index) -> None:
        """Begin a step, whose tokens come after the ``seen`` own ones of each member."""
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
        heads, _, width = store.shape
        pages = store.view(heads, -1, self.page_size * width)

        def taken(index: Tensor) -> Tensor:
            members = index.shape[:-1].numel()
            return pages.index_select(1, index.reshape(-1)).view(heads, members, -1, width)

        # what is not written yet may be anything, and not a number times weight 0 is none
        block, own = self.block, taken(self.block.own)
        kept = own.new_zeros((heads, self.members, self.room, width))
        kept[:, :, : own.shape[2]] = own
        unwritten = torch.from_numpy(np.arange(self.room) > self.seen[:, None])
        self.own[layer] = kept.masked_fill_(unwritten[None, :, :, None], 0)
        if block.context.shape[1]:
            context = taken(block.context)
            if block.context_hidden is not None:
                context.masked_fill_(block.context_hidden[None, :, :, None], 0)
                self.context_mask = additive_mask(block.context_hidden, store.dtype)
            self.context[layer] = context

    def attend(self, layer: int, q: Tensor, scale: float, out: Tensor) -> None:
        """Attention of this block's rows of q [T, Hq, D], into out [T, Hq * D]."""
        own, valid = self.own[layer], self.block.valid
        assert own is not None
        if self.mask is None and self.seen.min() + 1 < self.length:
            hidden = torch.from_numpy(np.arange(self.length) > self.seen[:, None])
            self.mask = additive_mask(hidden, q.dtype)
        mine = q[: self.members] if self.in_order else q.index_select(0, self.rows)
        grouped = mine.view(self.members, own.shape[0] // 2, -1, q.shape[2])
        near = own[:, :, : self.length]
        result = decode_attention(
            grouped, near, scale, self.mask, self.context[layer], self.context_mask
        ).reshape(self.members, -1)
        if self.in_order:
            out[: self.members] = result
        elif valid is None:
            out.index_copy_(0, self.rows, result)
        else:
            out.index_copy_(0, self.rows[valid], result[valid])
