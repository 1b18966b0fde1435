"""AdamW on one flat buffer (Loshchilov & Hutter, arXiv 1711.05101), with the gradient norm and clipping.

m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;  p = p (1 - lr λ) - lr m/(1-β1^t) / (sqrt(v/(1-β2^t)) + eps)

Fused: sums of squares of runs of the gradient, in float64 as squares of 1e20 overflow float32; one program
adds them up in order and leaves (norm, clip factor) in device memory; the update reads the factor there, so
that the host never waits. The factor is NaN where the norm is not finite, and then nothing is loaded or
stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import require, settings_for, use_triton

SETTINGS = {
    "default": {"BLOCK": 1024, "RUN": 32768, "WARPS": 4},
    "interpreter": {"BLOCK": 32, "RUN": 64, "WARPS": 4},
}
"""BLOCK elements at a time; RUN: elements that one program squares and adds."""


def clip_by_norm(grad: Tensor, max_norm: float | None) -> float:
    """Scale ``grad`` [P] in place so that its 2-norm is at most ``max_norm`` (None: untouched). Returns the
    norm before.
    """
    norm = float(torch.linalg.vector_norm(grad, dtype=torch.float64))
    if max_norm is not None and norm > max_norm:
        grad.mul_(max_norm / norm)
    return norm


@torch.no_grad()
def adamw_reference(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """`adamw` in plain torch: the same arithmetic as torch.optim.AdamW."""
    beta1, beta2 = betas
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
    param.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


def clipped_adamw_reference(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Tensor:
    """`clipped_adamw` as `clip_by_norm` and `adamw_reference`; scales ``grad`` in place."""
    norm = clip_by_norm(grad, max_norm)
    if math.isfinite(norm):
        adamw_reference(param, grad, m, v, step, lr, betas, eps, weight_decay)
    return torch.tensor(norm, dtype=torch.float64, device=grad.device)


# --- Triton ---


@jit
def squares_kernel(grad_ptr, partial_ptr, count, RUN: tl.constexpr, BLOCK: tl.constexpr):
    """One program a run of RUN elements: their sum of squares, float64 [programs]."""
    start = tl.program_id(0).to(tl.int64) * RUN
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(0, RUN, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + at, mask=at < count, other=0.0).to(tl.float64)
        total += grad * grad
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))


@jit
def clip_kernel(partial_ptr, state_ptr, programs, max_norm, BLOCK: tl.constexpr):
    """One program: state = (norm, factor), factor NaN where the norm is not finite."""
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(0, programs, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + at, mask=at < programs, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    above = norm > max_norm
    factor = tl.where(above, max_norm / tl.where(above, norm, 1.0), 1.0)
    tl.store(state_ptr, norm)
    tl.store(state_ptr + 1, tl.where(norm < float("inf"), factor, float("nan")))


@jit
def adamw_kernel(
    param_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    state_ptr,
    count,
    keep,
    share1,
    beta2,
    share2,
    root2,
    eps,
    rate,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program BLOCK elements: the update in place, of the gradient times the factor in ``state`` (CLIP)
    or as it is.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = 1.0
    if CLIP:
        factor = tl.load(state_ptr + 1).to(tl.float32)
        count = tl.where(factor == factor, count, 0)
    inside = at < count
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0) * factor
    m = tl.load(m_ptr + at, mask=inside, other=0.0)
    m += (grad - m) * share1
    v = tl.load(v_ptr + at, mask=inside, other=0.0) * beta2 + grad * grad * share2
    param = tl.load(param_ptr + at, mask=inside, other=0.0) * keep
    param += rate * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root2) + eps)
    tl.store(m_ptr + at, m, mask=inside)
    tl.store(v_ptr + at, v, mask=inside)
    tl.store(param_ptr + at, param, mask=inside)


def _launch_update(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    state: Tensor | None,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    use, count = settings_for(SETTINGS, param.device), param.numel()
    if count:
        beta1, beta2 = betas
        adamw_kernel[(triton.cdiv(count, use["BLOCK"]),)](
            param,
            grad,
            m,
            v,
            grad if state is None else state,
            count,
            1 - lr * weight_decay,
            1 - beta1,
            beta2,
            1 - beta2,
            math.sqrt(1 - beta2**step),
            eps,
            -lr / (1 - beta1**step),
            state is not None,
            use["BLOCK"],
            num_warps=use["WARPS"],
        )


def _launch_norm(grad: Tensor, max_norm: float | None) -> Tensor:
    """(norm, clip factor), float64 [2]."""
    use, count = settings_for(SETTINGS, grad.device), grad.numel()
    programs = triton.cdiv(count, use["RUN"])
    partial = torch.empty(max(1, programs), dtype=torch.float64, device=grad.device)
    state = torch.empty(2, dtype=torch.float64, device=grad.device)
    if programs:
        squares_kernel[(programs,)](grad, partial, count, use["RUN"], use["BLOCK"], num_warps=use["WARPS"])
    bound = math.inf if max_norm is None else max_norm
    clip_kernel[(1,)](partial, state, programs, bound, use["BLOCK"], num_warps=use["WARPS"])
    return state


# --- public ---


@torch.no_grad()
def adamw(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One update in place; all tensors float32 [P], ``step`` counts from 1. On a CPU the same arithmetic as
    torch.optim.AdamW.

    Tensors of another type or with gaps take the torch form everywhere. Raises KernelError where tensors do
    not match or ``step`` is below 1.
    """
    _check(param, grad, m, v, step)
    if _runs_triton(param, grad, m, v):
        _launch_update(param, grad, m, v, None, step, lr, betas, eps, weight_decay)
    else:
        adamw_reference(param, grad, m, v, step, lr, betas, eps, weight_decay)


@torch.no_grad()
def clipped_adamw(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Tensor:
    """`clip_by_norm` and `adamw` in one, without waiting for the device; returns the norm before clipping, a
    float64 scalar on the device.

    Where the norm is not finite nothing is changed: the caller must look (``isfinite``) and then not count
    the step. ``grad`` may be left scaled or not. Raises KernelError as `adamw` does, and for a ``max_norm``
    that is not above 0.
    """
    _check(param, grad, m, v, step)
    require(max_norm is None or max_norm > 0, "max_norm", f"{max_norm} is not above 0")
    if not _runs_triton(param, grad, m, v):
        return clipped_adamw_reference(param, grad, m, v, step, lr, betas, eps, weight_decay, max_norm)
    state = _launch_norm(grad, max_norm)
    _launch_update(param, grad, m, v, state, step, lr, betas, eps, weight_decay)
    return state[0]


def _check(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int) -> None:
    for name, tensor in (("grad", grad), ("m", m), ("v", v)):
        require(
            tensor.shape == param.shape,
            name,
            f"shape {tuple(tensor.shape)} beside param {tuple(param.shape)}",
        )
        require(tensor.device == param.device, name, f"on {tensor.device}, param on {param.device}")
    require(step >= 1, "step", f"{step}: counts from 1")


def _runs_triton(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) and use_triton(tensors[0])
