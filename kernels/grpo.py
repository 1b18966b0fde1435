"""Group-relative advantages and the clipped policy-gradient loss.

    A_i = (r_i - mean) / (std + eps)     "art", "verl"
    A_i = r_i - mean,   r_i - mean of the others     "mean", "rloo"
    L_t = -w_t min(ρ_t A_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) A_t) + β w_t (exp(d_t) - d_t - 1)
    ρ = exp(new - old),   d = reference - new
    dL_t/dnew = -w_t ρ_t A_t (0 where the clip binds) + β w_t (1 - exp(d_t))

"art" divides by the population deviation, and a group of one gets 0; "verl" divides by the unbiased
deviation, and a group of one keeps its reward (mean 0, std 1) [both CODE]. "mean" leaves the deviation out
(Dr. GRPO: Liu et al., arXiv 2503.20783), "rloo" takes the mean of the others (RLOO: Ahmadian et al., arXiv
2402.14740); a group of one gets 0. The KL is the k3 estimator. GRPO: Shao et al., arXiv 2402.03300; PPO clip:
Schulman et al., arXiv 1707.06347.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from proactor.kernels.jit import jit_any, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, require, settings_for, use_triton

Convention = Literal["art", "verl", "mean", "rloo"]
CONVENTIONS: tuple[Convention, ...] = ("art", "verl", "mean", "rloo")


def group_advantages(
    rewards: Sequence[float], convention: Convention = "art", eps: float = 1e-6
) -> list[float]:
    """Advantages of one group, in float64. Equal rewards give zeros, except "verl" for a group of one; a
    reward that is not finite makes all of them NaN.
    """
    r = torch.tensor(list(rewards), dtype=torch.float64)
    if not bool(r.isfinite().all()):
        return [math.nan] * len(r)
    if len(r) == 1:
        return [float(r[0]) if convention == "verl" else 0.0]
    if bool((r == r[0]).all()):
        return [0.0] * len(r)  # exactly 0: rounding in the mean must not become a gradient
    if convention in ("mean", "rloo"):
        others = len(r) / (len(r) - 1) if convention == "rloo" else 1.0
        return [float(a) for a in (r - r.mean()) * others]
    deviation = r.std(correction=0 if convention == "art" else 1)
    return [float(a) for a in (r - r.mean()) / (deviation + eps)]


def clipped_loss(
    new: Tensor, old: Tensor, advantage: Tensor, weight: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """(weighted clipped loss [N], mask [N] of tokens where the clip binds); all inputs float32 [N]."""
    term, binds = clipped_term(new - old, advantage, epsilon_low, epsilon_high)
    return -term * weight, binds


def clipped_term(
    change: Tensor, advantage: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """(min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) [N], mask [N] of where the clip binds), ρ = exp(change).

    There, and at advantage 0, the gradient is 0 even where ρ overflows.
    """
    with torch.no_grad():
        ratio = change.exp()
        bounded = ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantage
        binds = bounded < ratio * advantage
    free = change.masked_fill(binds | (advantage == 0), 0.0).exp()
    return torch.where(binds, bounded, free * advantage), binds


def kl_k3(new: Tensor, reference: Tensor) -> Tensor:
    """k3 estimator of KL(new || reference) per token [N]: exp(d) - d - 1 with d = reference - new. [CODE]"""
    d = reference - new
    return d.exp() - d - 1


# --- the whole loss ---

STATISTICS = ("loss", "clipped", "kl", "ratio_error", "tokens")
"""The statistics of `policy_loss`, in order.

Sum of the loss, tokens where the clip binds, sum of k3 (0 without a reference), max |ρ - 1|, tokens.
"""
SETTINGS = {
    "default": {"BLOCK": 512, "WARPS": 4},
    "interpreter": {"BLOCK": 16, "WARPS": 4},
}


def policy_loss_reference(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    reference: Tensor | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`policy_loss` by `clipped_loss` and `kl_k3`, with autograd's backward."""
    loss, clipped = clipped_loss(new, old, advantage, weight, epsilon_low, epsilon_high)
    kl = None if reference is None else kl_k3(new, reference)
    if kl is not None:
        loss = loss + beta * kl * weight
    with torch.no_grad():
        error = ((new - old).exp() - 1).abs()
        zero = loss.new_zeros(())
        parts = [
            loss.sum(),
            clipped.sum(),
            zero if kl is None else kl.sum(),
            error.max() if len(error) else zero,
            zero + len(new),
        ]
        return loss, torch.stack([p.detach().double() for p in parts])


@jit_any("count", "programs")
def policy_loss_kernel(
    new_ptr,
    old_ptr,
    advantage_ptr,
    weight_ptr,
    reference_ptr,
    loss_ptr,
    slope_ptr,
    partial_ptr,
    count,
    programs,
    low,
    high,
    beta,
    REFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(N / BLOCK)), tile [BLOCK tokens]: loss [N] and its gradient in ``new`` [N].

    Each program's share of the statistics goes to partial [4, programs].
    """
    program = tl.program_id(0)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    new = tl.load(new_ptr + at, mask=inside, other=0.0)
    advantage = tl.load(advantage_ptr + at, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    ratio = tl.exp(new - tl.load(old_ptr + at, mask=inside, other=0.0))
    plain = tl.where(advantage == 0.0, 0.0, ratio * advantage)  # also where the ratio overflows
    bounded = tl.minimum(tl.maximum(ratio, low), high) * advantage
    binds = bounded < plain  # False for NaN, which ``plain`` then propagates
    loss = -tl.where(binds, bounded, plain) * weight
    slope = -tl.where(binds, 0.0, plain) * weight
    kl = tl.zeros([BLOCK], tl.float32)
    if REFERENCE:
        d = tl.load(reference_ptr + at, mask=inside, other=0.0) - new
        kl = tl.exp(d) - d - 1.0
        loss += beta * kl * weight
        slope += beta * weight * (1.0 - tl.exp(d))
    tl.store(loss_ptr + at, loss, mask=inside)
    tl.store(slope_ptr + at, slope, mask=inside)
    error = tl.abs(ratio - 1.0)
    has_nan = tl.max((error != error).to(tl.int32), 0) > 0  # tl.max ignores NaN
    tl.store(partial_ptr + program, tl.sum(loss, 0))
    tl.store(partial_ptr + programs + program, tl.sum(binds.to(tl.float32), 0))
    tl.store(partial_ptr + 2 * programs + program, tl.sum(kl, 0))
    tl.store(partial_ptr + 3 * programs + program, tl.where(has_nan, float("nan"), tl.max(error, 0)))


@jit_any("count", "programs")
def policy_statistics_kernel(partial_ptr, out_ptr, count, programs, BLOCK: tl.constexpr):
    """One program, tile [BLOCK]: the partial statistics added in order, in float64, into out [5]."""
    loss = tl.zeros([BLOCK], tl.float64)
    clipped = tl.zeros([BLOCK], tl.float64)
    kl = tl.zeros([BLOCK], tl.float64)
    error = tl.zeros([BLOCK], tl.float32)
    nans = tl.zeros([BLOCK], tl.int32)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < programs
        loss += tl.load(partial_ptr + at, mask=inside, other=0.0).to(tl.float64)
        clipped += tl.load(partial_ptr + programs + at, mask=inside, other=0.0).to(tl.float64)
        kl += tl.load(partial_ptr + 2 * programs + at, mask=inside, other=0.0).to(tl.float64)
        largest = tl.load(partial_ptr + 3 * programs + at, mask=inside, other=0.0)
        error = tl.maximum(error, largest)
        nans += (largest != largest).to(tl.int32)
    tl.store(out_ptr, tl.sum(loss, 0))
    tl.store(out_ptr + 1, tl.sum(clipped, 0))
    tl.store(out_ptr + 2, tl.sum(kl, 0))
    tl.store(out_ptr + 3, tl.where(tl.sum(nans, 0) > 0, float("nan"), tl.max(error, 0)).to(tl.float64))
    tl.store(out_ptr + 4, count)


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        new: Tensor,
        old: Tensor,
        advantage: Tensor,
        weight: Tensor,
        reference: Tensor | None,
        low: float,
        high: float,
        beta: float,
    ) -> tuple[Tensor, Tensor]:
        use, count = settings_for(SETTINGS, new.device), new.shape[0]
        programs = triton.cdiv(count, use["BLOCK"])
        new, old, advantage, weight = (t.contiguous() for t in (new, old, advantage, weight))
        loss, slope = torch.empty_like(new), torch.empty_like(new)
        partial = torch.empty((4, max(1, programs)), dtype=torch.float32, device=new.device)
        statistics = torch.empty(len(STATISTICS), dtype=torch.float64, device=new.device)
        if programs:
            inputs = new, old, advantage, weight, new if reference is None else reference.contiguous()
            policy_loss_kernel[(programs,)](
                *(*inputs, loss, slope, partial, count, programs, 1 - low, 1 + high, beta),
                REFERENCE=reference is not None,
                BLOCK=use["BLOCK"],
                num_warps=use["WARPS"],
            )
        policy_statistics_kernel[(1,)](
            partial, statistics, count, programs, use["BLOCK"], num_warps=use["WARPS"]
        )
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(statistics)
        return loss, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None, None, None, None, None, None


def policy_loss(
    new: Tensor,
    old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    reference: Tensor | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(loss L [N] of the formula above, differentiable in ``new``; `STATISTICS` float64 [5] on the device).

    All inputs [N]: log-probabilities ``new``, ``old`` and ``reference`` in nats (None: no KL), advantages and
    weights. If all are float32, Triton computes loss and gradient in one pass; other dtypes stay in torch. A
    NaN input gives NaN in its token's loss and in the statistics. Raises KernelError when shapes or devices
    differ, and when anything but ``new`` requires a gradient.
    """
    require(new.ndim == 1, "new", f"shape {tuple(new.shape)} is not [N]")
    for name, t in (("old", old), ("advantage", advantage), ("weight", weight), ("reference", reference)):
        if t is not None:
            require(t.shape == new.shape, name, f"shape {tuple(t.shape)} beside new {tuple(new.shape)}")
            require(t.device == new.device, name, f"on {t.device}, new on {new.device}")
            wants_gradient = t.requires_grad and torch.is_grad_enabled()
            require(not wants_gradient, name, "requires a gradient; only new gets one")
    inputs = [t for t in (new, old, advantage, weight, reference) if t is not None]
    if all(t.dtype == torch.float32 for t in inputs) and use_triton(new):
        return _PolicyLoss.apply(  # type: ignore[no-any-return, no-untyped-call]
            new, old, advantage, weight, reference, epsilon_low, epsilon_high, beta
        )
    return policy_loss_reference(new, old, advantage, weight, reference, epsilon_low, epsilon_high, beta)


# --- record ---


def _split_statistics(form: Any) -> Any:
    """``form`` with each statistic as an output of its own: the check compares each at its own scale."""

    def run(**arguments: Any) -> tuple[Tensor, ...]:
        loss, statistics = form(**arguments)
        return loss, *statistics.unbind()

    return run


def _case(count: int, reference: bool) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(scale: float) -> Tensor:
            return (torch.randn(count, generator=generator, device=device) * scale).to(dtype)

        new = draw(1.0) - 2
        tensors = {"new": new, "old": new + draw(0.4), "advantage": draw(1.0), "weight": draw(1.0).abs()}
        rest = {"reference": new + draw(0.4), "beta": 0.3} if reference else {}
        return {**tensors, "epsilon_low": 0.2, "epsilon_high": 0.3, **rest}

    return Case(f"{count}{'ref' if reference else ''}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(count, True) for count in (4096, 262144)]


def _launches() -> list[Launch]:
    names = "new old advantage weight reference loss slope partial".split()
    types = {f"{n}_ptr": "*fp32" for n in names} | {"count": "i32", "programs": "i32"}
    types |= dict.fromkeys(("low", "high", "beta"), "fp32")
    use = SETTINGS["default"]
    losses = [
        Launch(policy_loss_kernel, types, {"REFERENCE": r, "BLOCK": use["BLOCK"]}, use["WARPS"], 1)
        for r in (False, True)
    ]
    types = {"partial_ptr": "*fp32", "out_ptr": "*fp64", "count": "i32", "programs": "i32"}
    return [*losses, Launch(policy_statistics_kernel, types, {"BLOCK": use["BLOCK"]}, use["WARPS"], 1)]


POLICY_LOSS = Op(
    "policy_loss",
    _split_statistics(policy_loss),
    _split_statistics(policy_loss_reference),
    [_case(n, r) for n in (0, 1, 16, 37, 300) for r in (False, True)],
    {torch.float32: 1e-5},
    bytes=lambda new, reference=None, **_: (5 if reference is None else 6) * new.nbytes,
    flops=lambda new, reference=None, **_: (10 if reference is None else 20) * new.numel(),
    gradients=("new",),
    launches=_launches(),
    timed=_timed_cases,
)
