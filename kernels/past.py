"""Keys and values of rows that an earlier pass computed, for the attention of a part of a tree.

The rows of a part attend to the C earlier rows and to their own. The earlier ones are read where they lie,
and their gradients are added where the owner wants them: a graph holds no copy of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Past:
    """keys, values [C, Hkv, D]; ``gradients``: of both, to which a backward adds; None: nobody needs them."""

    keys: Tensor
    values: Tensor
    gradients: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        """C."""
        return self.keys.shape[0]

    def add(self, dk: Tensor, dv: Tensor) -> None:
        """Add gradients [C, Hkv, D], in the sums' dtype."""
        if self.gradients is not None:
            for total, part in zip(self.gradients, (dk, dv), strict=True):
                total += part


class _Joined(torch.autograd.Function):
    """`joined`, whose backward adds the earlier rows' gradients to the past's."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, past: Past) -> tuple[Tensor, ...]:
        ctx.past = past
        return joined(past, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first = ctx.past.rows
        ctx.past.add(grads[0][:first], grads[1][:first])
        return grads[0][first:], grads[1][first:], None


def past_and_own(past: Past | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`joined`, differentiable: for attention by torch's own operations, whose graph then keeps the copy."""
    if past is None or not past.rows:
        return k, v
    return _Joined.apply(k, v, past)  # type: ignore[no-any-return, no-untyped-call]


def joined(past: Past | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [C + T, Hkv, D]: the earlier rows, then the own ones."""
    if past is None or not past.rows:
        return k, v
    return torch.cat([past.keys, k]), torch.cat([past.values, v])
