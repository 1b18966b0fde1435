"""AdamW on one flat buffer (Loshchilov & Hutter, arXiv 1711.05101), with the gradient norm and clipping.

m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;  p = p (1 - lr λ) - lr m/(1-β1^t) / (sqrt(v/(1-β2^t)) + eps)

Three kernels: sums of squares of stretches of the gradient, in float64 because squares of 1e20 overflow
float32; one program that adds them in order and stores (norm, clip factor) in device memory; the update,
which reads the factor there, so that the host never synchronises. For a norm that is not finite the factor is
NaN, and the update loads and stores nothing.
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
"""BLOCK: elements at a time; RUN: elements that one program of the norm squares and adds."""


def clip_by_norm(grad: Tensor, max_norm: float | None) -> float:
    """Scale ``grad`` [P] in place to a 2-norm of at most ``max_norm`` (None: any); returns the old norm."""
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
    """`adamw` in plain torch: the arithmetic of torch.optim.AdamW."""
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
    """`clipped_adamw` by `clip_by_norm` and `adamw_reference`; scales ``grad`` in place."""
    norm = clip_by_norm(grad, max_norm)
    if math.isfinite(norm):
        adamw_reference(param, grad, m, v, step, lr, betas, eps, weight_decay)
    return torch.tensor(norm, dtype=torch.float64, device=grad.device)


# --- Triton ---


@jit
def squares_kernel(grad_ptr, partial_ptr, count, RUN: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (ceil(count / RUN)), tile [BLOCK]: the sum of squares of RUN elements, float64 [programs]."""
    start = tl.program_id(0).to(tl.int64) * RUN
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(0, RUN, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + at, mask=at < count, other=0.0).to(tl.float64)
        total += grad * grad
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, 0))


@jit
def clip_kernel(partial_ptr, state_ptr, programs, max_norm, BLOCK: tl.constexpr):
    """One program, tile [BLOCK]: state = (norm, clip factor); the factor is NaN if the norm is not finite."""
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
    """Grid (ceil(count / BLOCK)), tile [BLOCK]: the update in place; CLIP: grad times ``state``'s factor."""
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
    """One update in place: all tensors float32 [P], ``step`` from 1. On a CPU, as torch.optim.AdamW computes.

    Tensors of another dtype, or not contiguous, take the torch form on every device. Raises KernelError when
    shapes or devices differ, and for a ``step`` below 1.
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
    """`clip_by_norm` and `adamw` without synchronising; returns the old norm, float64 [] on the device.

    A norm that is not finite changes nothing: the caller must check (``isfinite``) and not count the step.
    ``grad`` may be scaled afterwards or not. Raises KernelError as `adamw` does, and for a ``max_norm`` <= 0.
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
