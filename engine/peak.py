"""Bytes that live at the height of a pass over a given tree: what a plan predicts.

Budgets (`engine/memory.py`) leave room for any tree of so many rows; here its own rows, logits and, on a CPU,
attention blocks count. The height is the head's, or that of the last layer's backward, while all layers'
saved tensors still live. Counted from the tensors of the code, by hand; `python -m bench.plan` and
`tests/card/test_live.py` hold it to what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from proactor.engine.blocks import segment_families, stack
from proactor.engine.chunks import Chunk
from proactor.engine.footprint import COLUMNS, SPAN_PARTS, Footprint, saved_row
from proactor.engine.layout import Layout
from proactor.engine.loss import Loss, by_token
from proactor.engine.model_config import ModelConfig
from proactor.engine.segments import Segment, tree_segments
from proactor.engine.tree import Tree
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.logprob import CHUNK_BYTES, CHUNK_ROWS, KEEP_BYTES
from proactor.kernels.tree_tiles import tile_scores


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass with gradient: ``rows``, the ``heads`` among them, and the ``past`` rows that they see too."""

    rows: int
    heads: int
    past: int
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class Peak:
    """The peaks of one model. ``ranks``: `total_rank` of its adapter. ``kernels``: on a GPU, else torch's
    form on a CPU.
    """

    config: ModelConfig
    ranks: int
    footprint: Footprint
    kernels: bool

    def of(self, tree: Tree, flat: Layout, chunks: Sequence[Chunk], loss: Loss) -> int:
        """Most bytes beside the model while ``tree`` is trained, in ``chunks``; without any: in one pass."""
        columns = tree.rows * COLUMNS
        if not chunks:
            whole = Pass(tree.rows, len(flat.head_row), 0, tree_segments(tree, flat.start))
            return columns + self._pass(whole, fused=self.kernels and by_token(loss))
        needed = torch.bincount(flat.head_row, minlength=tree.rows)
        passes = (
            Pass(len(c.rows), int(needed[torch.from_numpy(c.rows)].sum()), c.before, c.segments)
            for c in chunks
        )
        kept = max(c.before + len(c.keep) for c in chunks)
        beside = kept * self.footprint.kept_row + columns
        # a loss that couples tokens is one of slopes by now, which does not
        return beside + max(self._pass(one, fused=self.kernels) for one in passes)

    def _pass(self, one: Pass, fused: bool) -> int:
        c, size = self.config, self.footprint.size
        saved = one.rows * (c.num_layers * saved_row(c, size) + self.ranks * size)
        head = self._head(one.heads, fused) + one.rows * 2 * c.hidden_size * size
        layer = self._kernel_layer(one) if self.kernels else self._torch_layer(one)
        return saved + max(head, layer)

    def _head(self, heads: int, fused: bool) -> int:
        """Logits, and the rows that they are made of, before and after the norm, with a gradient."""
        c, size = self.config, self.footprint.size
        rows, row = 4 * heads * c.hidden_size * size, c.vocab_size * size
        if self.kernels:
            chunk = min(heads, max(1, CHUNK_BYTES // row)) * row
            return rows + (chunk if fused or heads * row > KEEP_BYTES else heads * row)
        chunk = min(heads, CHUNK_ROWS) * c.vocab_size * max(size, 4)
        return rows + chunk + (heads * row if heads * row <= KEEP_BYTES else chunk)

    def _kernel_layer(self, one: Pass) -> int:
        """As `passing_row`, whose larger side is not the same with earlier rows: their keys and values are
        joined to the own ones, and so are the gradients of both.
        """
        c, size = self.config, self.footprint.size
        stream = one.rows * (4 * c.hidden_size * size + COLUMNS)
        kv = c.num_kv_heads * c.head_dim
        mlp = one.rows * 3 * c.intermediate_size
        attention = one.rows * 5 * (c.num_heads * c.head_dim + 2 * kv) + 4 * one.past * kv
        return stream + max(self.footprint.product + mlp * size, SPAN_PARTS + attention * size)

    def _torch_layer(self, one: Pass) -> int:
        """The larger of the MLP's and the attention's backward, beside the stream and its gradient."""
        c, size = self.config, self.footprint.size
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        stream = one.rows * 3 * c.hidden_size * size
        mlp = one.rows * 4 * c.intermediate_size * size
        blocks = stack(segment_families(one.segments, one.past))
        largest = max((self._block(block) for block in blocks), default=0)
        wide = max(size, 4)  # sums of half types
        own = one.rows * q * (3 * size + wide) + 2 * (one.past + one.rows) * kv * (size + wide)
        attention = own + max(largest, one.rows * q * wide)  # at the end dq once more
        return self.footprint.product + stream + max(mlp, attention)

    def _block(self, block: AttentionBlock) -> int:
        """The backward of one attention block: a tile, queries and keys gathered, their gradients, a mask."""
        c, wide = self.config, max(self.footprint.size, 4)
        queries = block.rows.numel() * c.num_heads * c.head_dim
        keys = 2 * (block.context.numel() + block.own.numel()) * c.num_kv_heads * c.head_dim
        scores = tile_scores(block, c.num_kv_heads, c.num_heads // c.num_kv_heads)
        mask = block.rows.numel() * block.own.shape[-1]
        return (3 * scores + 3 * queries + 2 * keys + mask) * wide
