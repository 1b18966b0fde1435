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
from proactor.engine.footprint import COLUMNS, SPAN_PARTS, Footprint, passing_row, saved_row
from proactor.engine.layout import Layout
from proactor.engine.loss import Loss, by_token
from proactor.engine.model_config import ModelConfig
from proactor.engine.segments import Segment, tree_segments
from proactor.engine.tree import Tree
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.logprob import CHUNK_BYTES, CHUNK_ROWS, KEEP_BYTES


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass with gradient: ``rows``, the ``heads`` among them, and the ``past`` rows that they see too."""

    rows: int
    heads: int
    past: int
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class Peak:
    """The peaks of one model. ``kernels``: on a GPU, else torch's form on a CPU."""

    config: ModelConfig
    rank: int
    footprint: Footprint
    kernels: bool

    def of(self, tree: Tree, flat: Layout, chunks: Sequence[Chunk], loss: Loss) -> int:
        """Most bytes beside the model while ``tree`` is trained, in ``chunks`` or, without any, in one pass."""
        fused = self.kernels and by_token(loss)
        if not chunks:
            whole = Pass(tree.rows, len(flat.head_row), 0, tree_segments(tree, flat.start))
            return self._columns(tree.rows) + self._pass(whole, fused)
        needed = torch.zeros(tree.rows, dtype=torch.int64).index_add_(
            0, flat.head_row, torch.ones_like(flat.head_row)
        )
        fused = self.kernels  # a loss that couples tokens has slopes by then, which do not
        passes = [
            Pass(len(c.rows), int(needed[torch.from_numpy(c.rows)].sum()), c.before, c.segments) for c in chunks
        ]
        kept = max(c.before + len(c.keep) for c in chunks)
        beside = kept * self.footprint.kept_row + self._columns(tree.rows)
        return beside + max(self._pass(one, fused) for one in passes)

    def _columns(self, rows: int) -> int:
        return rows * COLUMNS

    def _pass(self, one: Pass, fused: bool) -> int:
        c, size = self.config, self.footprint.size
        saved = one.rows * c.num_layers * saved_row(c, size, self.rank)
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
        c, size = self.config, self.footprint.size
        joined = 4 * one.past * c.num_kv_heads * c.head_dim * max(size, 4) if one.past else 0
        return one.rows * passing_row(c, size) + self.footprint.product + min(SPAN_PARTS, joined or SPAN_PARTS)

    def _torch_layer(self, one: Pass) -> int:
        """The larger of the MLP's and the attention's backward, beside the stream and its gradient."""
        c, size = self.config, self.footprint.size
        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        stream = one.rows * 3 * c.hidden_size * size
        mlp = one.rows * 4 * c.intermediate_size * size
        blocks = stack(segment_families(one.segments, one.past))
        largest = max((self._block(block) for block in blocks), default=0)
        attention = (5 * one.rows * q + 4 * (one.past + one.rows) * kv) * size + largest
        return self.footprint.product + stream + max(mlp, attention)

    def _block(self, block: AttentionBlock) -> int:
        """The backward of one attention block: scores twice, queries and keys gathered."""
        c, size = self.config, self.footprint.size
        families, members, rows = block.rows.shape
        context, own = block.context.shape[1], block.own.shape[2]
        queries = families * members * rows
        scores = c.num_heads * queries * (context + own) * max(size, 4)
        keys = families * (context + members * own) * c.num_kv_heads * c.head_dim
        return 2 * scores + (4 * queries * c.num_heads * c.head_dim + 3 * keys) * size
