"""`AttentionBlock`: which query rows see which keys, in the attention of a CPU (`tree_attention`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class AttentionBlock:
    """F families of n members with lq query rows each.

    rows [F, n, lq]: query rows (padding repeats a real row); valid: flat positions of the real ones in
    ``rows``, None if all are real; context [F, c] and own [F, n, o]: units of the key store; context_hidden
    [F, Lc] and own_hidden [F, n, lq, Lo]: bool, True for hidden keys, None if all are visible (Lc = c * unit
    and Lo = o * unit keys). Hidden keys and values must be finite: their weight is next to nothing
    (`precision.FAINT`), but not 0. causal: real query i of a member sees its own keys 0 … i, and no others.
    """

    rows: Tensor
    context: Tensor
    own: Tensor
    valid: Tensor | None = None
    context_hidden: Tensor | None = None
    own_hidden: Tensor | None = None
    causal: bool = False

    def to(self, device: torch.device) -> AttentionBlock:
        """The block with its tensors on ``device``; itself if they are on it."""
        if self.rows.device == device:
            return self
        rows, context, own = (t.to(device) for t in (self.rows, self.context, self.own))
        valid, far, near = (
            None if t is None else t.to(device) for t in (self.valid, self.context_hidden, self.own_hidden)
        )
        return AttentionBlock(rows, context, own, valid, far, near, self.causal)


def heads_first(x: Tensor, kv_heads: int) -> Tensor:
    """[T, Hq, D] -> [Hkv, T, G, D] contiguous."""
    t, hq, d = x.shape
    return x.view(t, kv_heads, hq // kv_heads, d).transpose(0, 1).contiguous()


def gather(store: Tensor, index: Tensor, unit: int) -> Tensor:
    """Rows of store [Hkv, S, D] of the units ``index`` [..., u] -> [Hkv, prod(...), u * unit, D]."""
    hkv, s, d = store.shape
    flat = store.view(hkv, s // unit, unit * d).index_select(1, index.reshape(-1))
    return flat.view(hkv, index.shape[:-1].numel(), index.shape[-1] * unit, d)


def queries(qh: Tensor, block: AttentionBlock) -> Tensor:
    """The block's query rows of qh [Hkv, T, G, D] -> [Hkv, F, n, lq, G, D]."""
    hkv, _, g, d = qh.shape
    return qh.index_select(1, block.rows.reshape(-1)).view(hkv, *block.rows.shape, g, d)


def real_rows(x: Tensor, block: AttentionBlock) -> Tensor:
    """The block's rows [Hkv, F * n * lq, G, D] of x [Hkv, T, G, D], 0 where they are padding."""
    found = x.index_select(1, block.rows.reshape(-1))
    if block.valid is None:
        return found
    keep = found.new_zeros(found.shape[1])
    keep[block.valid] = 1
    return found * keep.view(1, -1, 1, 1)


def scatter(target: Tensor, block: AttentionBlock, value: Tensor) -> None:
    """Write the real rows of value [Hkv, F * n * lq, …] to their places in target [Hkv, T, …]."""
    rows = block.rows.reshape(-1)
    if block.valid is not None:
        rows, value = rows[block.valid], value.index_select(1, block.valid)
    target.index_copy_(1, rows, value)
