"""Attention of decoding rows equals dense attention over what each row sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.kernels.decode_attention import additive_mask, decode_attention

HEADS = [(1, 1, 4), (2, 3, 8), (3, 1, 16)]


def dense(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One row: q [Hkv, G, D] over keys and values [Hkv, S, D]."""
    return (q @ keys.transpose(1, 2) * scale).softmax(-1) @ values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("families,members", [(1, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("context", [0, 7])
def test_rows_see_their_context_and_their_own_keys(
    dtype: torch.dtype, heads: tuple[int, int, int], families: int, members: int, context: int
) -> None:
    """Lengths differ, contexts too; the first family has an empty one, padded."""
    torch.manual_seed(0)
    (hkv, group, width), count, room = heads, families * members, 9
    q = torch.randn(count, hkv, group, width).to(dtype)
    own = torch.randn(2 * hkv, count, room, width).to(dtype)[
        :, :, :6
    ]  # a part of the room, as the engine has
    shared = torch.randn(2 * hkv, families, context, width).to(dtype)
    lengths = torch.arange(count) % 6 + 1
    far = torch.arange(families) * context // max(1, families - 1)
    hidden = torch.arange(6) >= lengths[:, None]
    far_hidden = torch.arange(context) >= far[:, None]
    out = decode_attention(
        q,
        own,
        0.3,
        additive_mask(hidden, dtype),
        shared if context else None,
        additive_mask(far_hidden, dtype) if context else None,
    )
    for i in range(count):
        above = shared[:, i // members, : far[i // members]]
        seen = torch.cat([above, own[:, i, : lengths[i]]], 1).double()
        expected = dense(q[i].double(), seen[:hkv], seen[hkv:], 0.3)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(out[i].double(), expected, rtol=tolerance, atol=tolerance)
