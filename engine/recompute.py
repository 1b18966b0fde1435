"""A tree in chunks: recomputed by turns, so that the activations of one chunk are alive at a time.

Pass one runs the kept rows (`engine/chunks.py`) without a graph and keeps their keys and values. Pass two
goes from the last chunk to the first. A chunk runs with a graph over the kept keys; its backward adds their
gradients to sums, and takes up what later chunks left there for its own kept rows. Every row is thus computed
once with a graph, and kept rows once more without. Gradients are those of one pass over the whole tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from proactor.engine.chunks import Chunk, cut, kept_alone
from proactor.engine.forward import TreeAttention, check_ids, head_logprobs, segment_view
from proactor.engine.layout import Layout, layout
from proactor.engine.model import Decoder
from proactor.engine.tree import Tree
from proactor.kernels.past import Past
from proactor.kernels.precision import wide_dtype


@dataclass(slots=True)
class Store:
    """Keys and values [K, Hkv, D] of the kept rows by layer, and the sums of their gradients (wide)."""

    keys: list[Tensor]
    values: list[Tensor]
    gradients: list[tuple[Tensor, Tensor]]

    @classmethod
    def empty(cls, decoder: Decoder, rows: int, gradient: bool) -> Store:
        """Room for ``rows``; ``gradient``: for the sums too, which are 0."""
        c = decoder.config
        shape = (rows, c.num_kv_heads, c.head_dim)
        place: dict[str, Any] = {"device": decoder.device}

        def room(dtype: torch.dtype) -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, **place) for _ in range(c.num_layers)]

        wide = wide_dtype(decoder.dtype)
        sums = list(zip(room(wide), room(wide), strict=True)) if gradient else []
        return cls(room(decoder.dtype), room(decoder.dtype), sums)

    def past(self, layer: int, rows: int) -> Past:
        """The first ``rows`` of a layer."""
        sums = self.gradients[layer] if self.gradients else None
        return Past(
            self.keys[layer][:rows],
            self.values[layer][:rows],
            None if sums is None else (sums[0][:rows], sums[1][:rows]),
        )


class _Kept(torch.autograd.Function):
    """Keys and values as they are; their backward adds the gradients that later chunks left for kept rows."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, keep: Tensor, sums: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        ctx.keep, ctx.sums = keep, sums
        return k.view_as(k), v.view_as(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dk, dv = (
            grad.index_add(0, ctx.keep, late.to(grad.dtype))
            for grad, late in zip(grads, ctx.sums, strict=True)
        )
        return dk, dv, None, None


@dataclass(slots=True)
class ChunkView:
    """Attention of a chunk over the store. Without a graph it writes kept rows to the store."""

    inner: TreeAttention
    store: Store
    chunk: Chunk
    keep: Tensor

    def rotate(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `TreeAttention`."""
        return self.inner.rotate(layer, qkv, cos, sin)

    def attend(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """As `TreeAttention`."""
        assert k is not None and v is not None
        store, before = self.store, self.chunk.before
        if len(self.keep):
            mine = slice(before, before + len(self.keep))
            if not torch.is_grad_enabled():
                store.keys[layer][mine], store.values[layer][mine] = k[self.keep], v[self.keep]
            elif k.requires_grad:
                sums = store.gradients[layer]
                k, v = _Kept.apply(k, v, self.keep, (sums[0][mine], sums[1][mine]))  # type: ignore[no-untyped-call]
        return self.inner.attend(layer, q, k, v, store.past(layer, before))


class Walk:
    """One tree in chunks of at most ``most`` rows.

    ``flat``: its layout on the host, where it is cut without a sync; ``batch``: its tokens on the device.
    Log-probabilities are in ``wide``.

    Raises EngineError as `forward.head_rows`.
    """

    def __init__(self, decoder: Decoder, tree: Tree, most: int) -> None:
        self.flat = layout(tree)
        check_ids(decoder, tree, self.flat)
        self.decoder = decoder
        self.batch = self.flat.to(decoder.device).batch
        self.chunks = cut(tree, self.flat.start, most)
        self.kept = max((c.before + len(c.keep) for c in self.chunks), default=0)
        self.wide = wide_dtype(decoder.dtype)
        self.store: Store | None = None

    @torch.no_grad()
    def remember(self) -> None:
        """Pass one: keys and values of the kept rows, with the adapter."""
        self.store = Store.empty(self.decoder, self.kept, gradient=True)
        for chunk in kept_alone(self.chunks):
            self._hidden(chunk, self._part(chunk)[0], self.store)

    @torch.no_grad()
    def logprobs(self, adapter: bool = True) -> Tensor:
        """Log-probabilities [N] of all trained tokens, without a graph; fills in ``batch.entropy``.

        With the adapter this is pass one too.
        """
        store = Store.empty(self.decoder, self.kept, gradient=adapter)
        out = torch.empty_like(self.batch.old, dtype=self.wide)
        entropy = torch.empty_like(out)
        for chunk in self.chunks:
            part, tokens = self._part(chunk)
            hidden = self._hidden(chunk, part, store, adapter)
            if len(tokens):
                out[tokens] = head_logprobs(self.decoder, self._normed(hidden, part), part)
                entropy[tokens] = part.batch.entropy
        self.batch.entropy = entropy
        if adapter:
            self.store = store
        return out

    def backwards(self) -> Iterator[tuple[Tensor, Layout, Tensor]]:
        """Pass two, last chunk first: (rows [R, H] for the head, their part of the layout, its tokens).

        Each must be given its backward before the next is taken. A part may be without tokens.
        """
        assert self.store is not None, "pass one comes first"
        for chunk in reversed(self.chunks):
            part, tokens = self._part(chunk)
            hidden = self._hidden(chunk, part, self.store)
            yield (self._normed(hidden, part) if len(tokens) else hidden[:0]), part, tokens
            del hidden

    def _part(self, chunk: Chunk) -> tuple[Layout, Tensor]:
        """As `Layout.part`, on the device."""
        part, tokens = self.flat.part(torch.from_numpy(chunk.rows))
        tokens = tokens.to(self.decoder.device)
        return replace(part.to(self.decoder.device), batch=self.batch.take(tokens)), tokens

    def _hidden(self, chunk: Chunk, part: Layout, store: Store, adapter: bool = True) -> Tensor:
        inner = segment_view(self.decoder, chunk.segments, chunk.before)
        view = ChunkView(inner, store, chunk, torch.from_numpy(chunk.keep).to(self.decoder.device))
        decoder = self.decoder if adapter else self.decoder.wearing(None)
        return decoder.hidden(part.ids, part.positions, view)

    def _normed(self, hidden: Tensor, part: Layout) -> Tensor:
        return self.decoder.final_norm(hidden.index_select(0, part.head_row))
