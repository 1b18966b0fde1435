"""Group-relative advantages of many groups at once (GRPO: Shao et al., arXiv 2402.03300).

A_i = (r_i - mean) / (std + eps)   within each group, in float64; by "mean" and "rloo" without the deviation

`grpo.group_advantages` computes one group, and explains the conventions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from proactor.kernels.grpo import CONVENTIONS, Convention, group_advantages
from proactor.kernels.jit import jit_any, tl
from proactor.kernels.op import (
    Arguments,
    Case,
    Launch,
    ModelShape,
    Op,
    on_gpu,
    require,
    settings_for,
    use_triton,
)

SETTINGS = {"default": {"BLOCK": 128, "WARPS": 1}, "interpreter": {"BLOCK": 8, "WARPS": 1}}


def ragged_advantages_reference(
    rewards: Tensor, offsets: Tensor, convention: Convention = "art", eps: float = 1e-6
) -> Tensor:
    """`ragged_advantages` group by group with `group_advantages`, in float64."""
    out = torch.full(rewards.shape, float("nan"), dtype=torch.float64)
    values, bounds = rewards.tolist(), offsets.tolist()
    for begin, end in pairwise(bounds):
        if begin < end:
            out[begin:end] = torch.tensor(
                group_advantages(values[begin:end], convention, eps), dtype=torch.float64
            )
    return out.to(rewards.device)


# --- Triton ---


@jit_any("count")
def ragged_advantages_kernel(
    reward_ptr,
    offset_ptr,
    out_ptr,
    count,
    eps,
    DIVIDE: tl.constexpr,
    UNBIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (groups), tile [BLOCK rewards]: three passes, for a group's mean, deviation and advantages.

    Not DIVIDE: "mean", and UNBIASED then "rloo".
    """
    begin = tl.load(offset_ptr + tl.program_id(0)).to(tl.int64)
    end = tl.load(offset_ptr + tl.program_id(0) + 1).to(tl.int64)
    valid = (begin >= 0) & (end <= count)
    low, high = tl.maximum(begin, 0), tl.minimum(end, count)
    size = end - begin
    first = tl.load(reward_ptr + low, mask=low < high, other=0.0).to(tl.float64)
    zero = first - first  # NaN where it is not finite
    total = zero
    unequal = size * 0  # rewards that differ from the first
    for start in range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        reward = tl.load(reward_ptr + at, mask=at < high, other=0.0).to(tl.float64)
        total += tl.sum(reward, 0)
        unequal += tl.sum(((reward != first) & (at < high)).to(tl.int64), 0)
    mean = total / tl.maximum(size, 1).to(tl.float64)
    squares = zero
    for start in range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        reward = tl.load(reward_ptr + at, mask=at < high, other=0.0).to(tl.float64)
        deviation = tl.where(at < high, reward - mean, 0.0)
        squares += tl.sum(deviation * deviation, 0)
    divisor = tl.maximum(size - 1 if UNBIASED else size, 1)
    if DIVIDE:
        scale = 1.0 / (tl.sqrt(squares / divisor.to(tl.float64)) + eps)
    else:
        scale = tl.maximum(size, 1).to(tl.float64) / divisor.to(tl.float64)
    for start in range(low, high, BLOCK):
        at = start + tl.arange(0, BLOCK)
        reward = tl.load(reward_ptr + at, mask=at < high, other=0.0).to(tl.float64)
        # exactly 0 for equal rewards: rounding in the mean must not become a gradient
        advantage = tl.where(unequal == 0, zero, (reward - mean) * scale)
        if DIVIDE and UNBIASED:
            advantage = tl.where(size == 1, reward + zero, advantage)
        advantage = tl.where(valid, advantage, float("nan"))
        tl.store(out_ptr + at, advantage.to(tl.float32), mask=at < high)


def ragged_advantages(
    rewards: Tensor, offsets: Tensor, convention: Convention = "art", eps: float = 1e-6
) -> Tensor:
    """Advantages float32 [N] of ragged groups: rewards float32 or float64 [N], offsets int [G + 1].

    Group g is ``rewards[offsets[g] : offsets[g + 1]]``; offsets are int32 or int64. Conventions as in
    `group_advantages`: "art" (population deviation, a group of one gets 0), "verl" (unbiased deviation, a
    group of one keeps its reward), "mean" and "rloo" (no deviation). Equal rewards give exact zeros. A NaN or
    infinite reward makes its group NaN; a reward in no group gets NaN.

    Raises KernelError for other dtypes and shapes, and for offsets on the CPU that decrease or leave [0, N].
    Offsets on a GPU are not checked, since that would synchronise: a group outside [0, N] gets NaN.
    """
    fits = rewards.ndim == 1 and rewards.dtype in (torch.float32, torch.float64)
    require(fits, "rewards", _describe(rewards))
    fits = offsets.ndim == 1 and offsets.shape[0] >= 1 and offsets.dtype in (torch.int32, torch.int64)
    require(fits, "offsets", _describe(offsets))
    require(convention in CONVENTIONS, "convention", f"{convention!r} is not one of {', '.join(CONVENTIONS)}")
    count = rewards.shape[0]
    if not on_gpu(offsets.device):
        bounds = offsets.tolist()
        ascending = bounds == sorted(bounds) and bounds[0] >= 0 and bounds[-1] <= count
        require(ascending, "offsets", f"not ascending in 0..{count}")
    if not use_triton(rewards):
        return ragged_advantages_reference(rewards, offsets, convention, eps).float()
    out = torch.full((count,), float("nan"), dtype=torch.float32, device=rewards.device)
    groups = offsets.shape[0] - 1
    if groups and count:
        use = settings_for(SETTINGS, rewards.device)
        ragged_advantages_kernel[(groups,)](
            rewards.contiguous(),
            offsets.to(rewards.device).contiguous(),
            out,
            count,
            eps,
            convention in ("art", "verl"),
            convention in ("verl", "rloo"),
            use["BLOCK"],
            num_warps=use["WARPS"],
        )
    return out


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


# --- record ---


def _case(sizes: tuple[int, ...], convention: Convention) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        rewards = torch.randn(sum(sizes), generator=generator, device=device).to(dtype) + 0.5
        offsets = torch.tensor([0, *sizes]).cumsum(0).to(device)
        return {"rewards": rewards, "offsets": offsets, "convention": convention}

    label = f"{len(sizes)}groups" if len(sizes) > 5 else "+".join(map(str, sizes))
    return Case(f"{label or 'none'}-{convention}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case((8,) * 512, "art")]


def _launches() -> list[Launch]:
    types = {"reward_ptr": "*fp32", "offset_ptr": "*i64", "out_ptr": "*fp32", "count": "i32", "eps": "fp32"}
    use = SETTINGS["default"]
    forms = [
        {"DIVIDE": divide, "UNBIASED": unbiased} for divide in (True, False) for unbiased in (False, True)
    ]
    sizes = {"BLOCK": use["BLOCK"]}
    return [Launch(ragged_advantages_kernel, types, form | sizes, use["WARPS"], 1) for form in forms]


SIZES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2, 1, 0, 7), (8, 3), (25, 1, 17))

RAGGED_ADVANTAGES = Op(
    "ragged_advantages",
    ragged_advantages,
    ragged_advantages_reference,
    [_case(sizes, c) for sizes in SIZES for c in CONVENTIONS],
    {torch.float32: 1e-6},
    bytes=lambda rewards, offsets, convention: rewards.nbytes + 4 * rewards.numel() + offsets.nbytes,
    flops=lambda rewards, offsets, convention: 5 * rewards.numel(),
    launches=_launches(),
    timed=_timed_cases,
)
