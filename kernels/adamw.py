"""AdamW on one flat buffer (Loshchilov & Hutter, arXiv 1711.05101), with the gradient norm and clipping.

m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;  p = p (1 - lr λ) - lr m/(1-β1^t) / (sqrt(v/(1-β2^t)) + eps)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clip_by_norm(grad: Tensor, max_norm: float | None) -> float:
    """Scale ``grad`` [P] in place so that its 2-norm is at most ``max_norm`` (None: untouched). Returns the norm before."""
    norm = float(torch.linalg.vector_norm(grad, dtype=torch.float64))
    if max_norm is not None and norm > max_norm:
        grad.mul_(max_norm / norm)
    return norm


@torch.no_grad()
def adamw(
    param: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """One update in place; all tensors float32 [P], ``step`` counts from 1. The same arithmetic as torch.optim.AdamW."""
    beta1, beta2 = betas
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
    param.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))
