"""The trainer's forward: a token tree in, log-probabilities of its trained tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proactor.engine.blocks import segment_families, stack
from proactor.engine.layout import Layout, layout
from proactor.engine.model import Decoder
from proactor.engine.segments import Segment, segment_spans, tree_segments
from proactor.engine.tree import Tree
from proactor.engine.types import EngineError
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.logprob import log_probabilities, row_chunks
from proactor.kernels.logprob_loss import PairLoss, logprob_loss
from proactor.kernels.op import use_triton
from proactor.kernels.past import Past
from proactor.kernels.rope import rotate_heads
from proactor.kernels.span_attention import span_attention
from proactor.kernels.spans import Spans
from proactor.kernels.tree_attention import tree_attention


class TreeAttention(Protocol):
    """An `AttentionView` among the rows of a tree or of a part of one, which may have a past."""

    def rotate(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (rotated) and v of qkv [T, Hq + 2 Hkv, D]."""
        ...

    def attend(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, past: Past | None = None
    ) -> Tensor:
        """q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D], differentiable."""
        ...


@dataclass(slots=True)
class TreeView:
    """Attention among a tree's own rows."""

    blocks: list[AttentionBlock]
    scale: float
    exact: bool
    kv_heads: int

    def rotate(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `TreeAttention`."""
        return rotate_heads(qkv, self.kv_heads, cos, sin)

    def attend(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, past: Past | None = None
    ) -> Tensor:
        """As `TreeAttention`."""
        assert k is not None and v is not None
        return tree_attention(q, k, v, self.blocks, self.scale, self.exact, past)


@dataclass(slots=True)
class SpanView:
    """Attention among a tree's own rows for the GPU kernels: spans of rows instead of blocks."""

    spans: Spans
    scale: float
    kv_heads: int

    def rotate(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `TreeAttention`."""
        return rotate_heads(qkv, self.kv_heads, cos, sin)

    def attend(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, past: Past | None = None
    ) -> Tensor:
        """As `TreeAttention`."""
        assert k is not None and v is not None
        return span_attention(q, k, v, self.spans, self.scale, past)


def tree_view(decoder: Decoder, tree: Tree, start: dict[int, int]) -> TreeAttention:
    """The attention of ``tree``, whose node i has its first row at ``start[i]``."""
    return segment_view(decoder, tree_segments(tree, start))


def segment_view(decoder: Decoder, segments: list[Segment], origin: int = 0) -> TreeAttention:
    """The attention of the segments' rows from ``origin`` on; those before it are keys of a past."""
    scale, kv_heads = decoder.config.head_dim**-0.5, decoder.config.num_kv_heads
    if use_triton(decoder.embed):
        return SpanView(segment_spans(segments, origin), scale, kv_heads)
    blocks = [block.to(decoder.device) for block in stack(segment_families(segments, origin))]
    return TreeView(blocks, scale, decoder.form.exact, kv_heads)


def tree_logprobs(decoder: Decoder, tree: Tree) -> tuple[Tensor, Layout]:
    """`head_rows` and `head_logprobs` in one: (log-probabilities [N], the tree's layout)."""
    rows, flat = head_rows(decoder, tree)
    return head_logprobs(decoder, rows, flat), flat


def head_rows(decoder: Decoder, tree: Tree) -> tuple[Tensor, Layout]:
    """(rows [R, H] of a tree that enter the head, the tree's layout on their device).

    Differentiable when gradients are on. The tree must have a trained token. Raises EngineError for ids
    outside the vocabulary and for sequences beyond the context.
    """
    flat = layout(tree)
    check_ids(decoder, tree, flat)
    assert len(flat.head_row), "callers leave out groups without a trained token"
    flat = flat.to(decoder.device)
    view = tree_view(decoder, tree, flat.start)
    hidden = decoder.hidden(flat.ids, flat.positions, view)
    return decoder.final_norm(hidden.index_select(0, flat.head_row)), flat


def head_logprobs(decoder: Decoder, rows: Tensor, flat: Layout) -> Tensor:
    """Log-probabilities [N] of the trained tokens in the order of `TokenBatch`, differentiable in ``rows``.

    Fills in ``flat.batch.entropy``.
    """
    logp, entropy = log_probabilities(
        rows, decoder.head, flat.pair_row, flat.pair_target, flat.head_temperature, decoder.head_linear
    )
    flat.batch.entropy = entropy[flat.unsort]
    return logp[flat.unsort]


def tree_choices(decoder: Decoder, tree: Tree, allowed: Tensor | None) -> tuple[Tensor, Layout]:
    """(int64 [N], the tree's layout): the most probable id, of those ``allowed`` (bool [V]), where each
    trained token stands. No gradient.
    """
    rows, flat = head_rows(decoder, tree)
    out = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for start, stop in row_chunks(len(rows), decoder.head):
        logits = decoder.head_linear(rows[start:stop], decoder.head)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        out[start:stop] = logits.argmax(-1)
    return out[flat.pair_row][flat.unsort], flat


def head_loss(decoder: Decoder, rows: Tensor, flat: Layout, loss: PairLoss) -> tuple[Tensor, Tensor]:
    """(sum of ``loss`` over the pairs, differentiable in ``rows``; `head_logprobs` without gradient).

    Logits live only for their chunk of rows, and none are computed twice. Fills in ``flat.batch.entropy``.
    """
    value, logp, entropy = logprob_loss(
        rows, decoder.head, flat.pair_row, flat.pair_target, flat.head_temperature, loss, decoder.head_linear
    )
    flat.batch.entropy = entropy[flat.unsort]
    return value, logp[flat.unsort]


def check_ids(decoder: Decoder, tree: Tree, flat: Layout) -> None:
    """Raise EngineError for ids outside the vocabulary and for sequences beyond the context."""
    size, room = decoder.config.vocab_size, decoder.config.context_length
    longest = max((len(g.prompt_ids) + len(s.token_ids) for g in tree.groups for s in g.samples), default=0)
    if longest > room:
        raise EngineError(f"tree: a sample of {longest} tokens (prompt included) in a context of {room}")
    for ids in (flat.ids, flat.pair_target):
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= size):
            raise EngineError(f"tree: ids outside 0 … {size - 1}")
