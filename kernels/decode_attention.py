"""Attention of decoding rows on a CPU: one row a sequence, over keys and values that lie together.

    out_i = softmax(scale * q_i · [K_context ; K_own]) [V_context ; V_own]

The heads of a group are rows that see the same keys. Where members share a context, both parts are computed
on their own and joined by their log-sum-exps, so that the context is read once for all members (cascade
attention: FlashInfer, arXiv 2501.01005). torch's fused attention computes each part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.kernels.precision import wide_dtype


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask [N, 1, 1, L] to be added to scores, of bool [N, L], True for hidden keys.

    Not -inf: a row that sees no key of one part has a finite sum there, and weight 0 beside the other.
    """
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min / 2)
    return mask[:, None, None]


def decode_attention(
    q: Tensor,
    own: Tensor,
    scale: float,
    own_mask: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
) -> Tensor:
    """q [N, Hkv, G, D] over own [2 Hkv, N, L, D], keys then values, and context [2 Hkv, F, Lc, D] -> as q.

    Rows i * N/F … of q share context i. Masks [N, 1, 1, L] and [F, 1, 1, Lc] are added to the scores
    (`additive_mask`); hidden keys and values must be finite.
    """
    if context is None:
        k, v = _keys_values(own)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=own_mask, scale=scale)
    near, near_lse = _fused(q, own, own_mask, scale)
    (_, hkv, group, width), families = q.shape, context.shape[1]
    together = q.view(families, -1, hkv, group, width).transpose(1, 2).reshape(families, hkv, -1, width)
    far, far_lse = (
        part.unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1)
        for part in _fused(together, context, context_mask, scale)
    )
    share = torch.sigmoid(far_lse - near_lse).unsqueeze(-1)
    wide = wide_dtype(q.dtype)
    return near.to(wide).lerp_(far.to(wide), share).to(q.dtype)


def _keys_values(store: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [N, Hkv, L, D] of a store [2 Hkv, N, L, D]."""
    k, v = store.transpose(0, 1).chunk(2, 1)
    return k, v


def _fused(q: Tensor, store: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output as q, log-sum-exp [N, Hkv, rows])."""
    k, v = _keys_values(store)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(q, k, v, attn_mask=mask, scale=scale)
    return out, lse
