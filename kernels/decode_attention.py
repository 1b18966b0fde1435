"""Attention of decoding rows on a CPU: one row a sequence, over keys and values that lie together.

    out_i = softmax(scale * q_i · [K_context ; K_own]) [V_context ; V_own]

The heads of a group are rows that see the same keys, and the context is read once for all members that share
it (cascade attention: FlashInfer, arXiv 2501.01005).

Half types take torch's fused attention, each part on its own, joined by log-sum-exps. Its exponential errs by
20 units in the last place, which would show in float32: there plain products are nearly as fast, in the order
of `tree_attention`, which trains. For half types they are five times slower where the processor has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proactor.kernels.precision import additive, exp_


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """`precision.additive` as [N, 1, 1, L], of bool [N, L]."""
    return additive(hidden, dtype)[:, None, None]


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
    if q.dtype not in (torch.bfloat16, torch.float16):
        return _plain(q, own, scale, own_mask, context, context_mask)
    if context is None:
        return _fused(q, own, own_mask, scale)[0]
    near, near_lse = _fused(q, own, own_mask, scale)
    (_, hkv, group, width), families = q.shape, context.shape[1]
    together = q.reshape(families, -1, hkv, group, width).transpose(1, 2).reshape(families, hkv, -1, width)
    far, far_lse = (
        part.unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1)
        for part in _fused(together, context, context_mask, scale)
    )
    share = torch.sigmoid(far_lse - near_lse).unsqueeze(-1)
    return near.float().lerp_(far.float(), share).to(q.dtype)


def _plain(
    q: Tensor,
    own: Tensor,
    scale: float,
    own_mask: Tensor | None,
    context: Tensor | None,
    context_mask: Tensor | None,
) -> Tensor:
    """`decode_attention` by products, with one maximum and one sum over both parts."""
    (rows, hkv, group, width), length = q.shape, own.shape[2]
    k, v = own.flatten(0, 1).chunk(2)  # [Hkv * N, L, D]
    heads = q.transpose(0, 1).reshape(hkv * rows, group, width)
    scores = torch.bmm(heads, k.transpose(1, 2)).mul_(scale)  # after the product, as the trainer
    if own_mask is not None:
        scores.view(hkv, rows, group, length).add_(own_mask.squeeze(1))
    top = scores.amax(-1, keepdim=True)
    if context is None:
        weights = exp_(scores, top)
        out = torch.bmm(weights, v).div_(weights.sum(-1, keepdim=True))
        return out.view(hkv, rows, group, width).transpose(0, 1)
    families = context.shape[1]
    shared_k, shared_v = context.flatten(0, 1).chunk(2)  # [Hkv * F, Lc, D]
    far = torch.bmm(heads.reshape(hkv * families, -1, width), shared_k.transpose(1, 2)).mul_(scale)
    if context_mask is not None:
        far.view(hkv, families, -1, far.shape[-1]).add_(context_mask.squeeze(1))
    apart = far.view(hkv * rows, group, -1)
    top = torch.maximum(top, apart.amax(-1, keepdim=True))
    weights, shared = exp_(scores, top), exp_(apart, top)
    out = torch.bmm(weights, v).add_(torch.bmm(far, shared_v).view(hkv * rows, group, width))
    out.div_(weights.sum(-1, keepdim=True).add_(shared.sum(-1, keepdim=True)))
    return out.view(hkv, rows, group, width).transpose(0, 1)


def _fused(q: Tensor, store: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output as q, log-sum-exp [N, Hkv, rows])."""
    k, v = store.transpose(0, 1).chunk(2, 1)  # [N, Hkv, L, D]
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(q, k, v, attn_mask=mask, scale=scale)
    return out, lse
