"""Records of `adamw` and `clipped_adamw`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proactor.kernels.adamw import (
    SETTINGS,
    adamw,
    adamw_kernel,
    adamw_reference,
    clip_kernel,
    clipped_adamw,
    clipped_adamw_reference,
    squares_kernel,
)
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op


def _return_updates(form: Any) -> Any:
    """``form`` returning the tensors it updates in place, (param, m, v[, norm]), for the check."""

    def run(**arguments: Any) -> tuple[Tensor, ...]:
        norm = form(**arguments)
        updated = tuple(arguments[name] for name in ("param", "m", "v"))
        return updated if norm is None else (*updated, norm)

    return run


def _case(count: int, scale: float, max_norm: float | None, decay: float, clipped: bool) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        param, grad, m, v = (torch.randn(count, generator=generator, device=device) for _ in range(4))
        rest = {"max_norm": max_norm} if clipped else {}
        tensors = {"param": param, "grad": grad * scale, "m": m * 0.1, "v": v.square()}
        settings = {"step": 3, "lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
        return {**{k: t.to(dtype) for k, t in tensors.items()}, **settings, **rest}

    return Case(f"{count}{'' if max_norm is None else f'clip{max_norm:g}'}", make)


def adapter_elements(shape: ModelShape, rank: int = 16) -> int:
    """Elements of a low-rank adapter on every linear layer of a model."""
    q, kv, i = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    sides = 2 * (shape.hidden + q) + 2 * (shape.hidden + kv) + 3 * (shape.hidden + i)
    return rank * sides * shape.layers


def _timed_cases(clipped: bool) -> Any:
    return lambda shape: [_case(adapter_elements(shape), 1.0, 1.0, 0.01, clipped)]


def _update_launch(clip: bool) -> Launch:
    use = SETTINGS["default"]
    types = dict.fromkeys(("param_ptr", "grad_ptr", "m_ptr", "v_ptr"), "*fp32")
    types |= {"state_ptr": "*fp64", "count": "i32"}
    types |= dict.fromkeys(("keep", "share1", "beta2", "share2", "root2", "eps", "rate"), "fp32")
    return Launch(adamw_kernel, types, {"CLIP": clip, "BLOCK": use["BLOCK"]}, use["WARPS"], 1)


def _norm_launches() -> list[Launch]:
    use = SETTINGS["default"]
    squares = {"grad_ptr": "*fp32", "partial_ptr": "*fp64", "count": "i32"}
    clip = {"partial_ptr": "*fp64", "state_ptr": "*fp64", "programs": "i32", "max_norm": "fp32"}
    return [
        Launch(squares_kernel, squares, {"RUN": use["RUN"], "BLOCK": use["BLOCK"]}, use["WARPS"], 1),
        Launch(clip_kernel, clip, {"BLOCK": use["BLOCK"]}, use["WARPS"], 1),
    ]


COUNTS = (0, 1, 64, 130, 2100)
TOLERANCE = {torch.float32: 1e-5}

ADAMW = Op(
    "adamw",
    _return_updates(adamw),
    _return_updates(adamw_reference),
    [_case(n, 1.0, None, 0.1, False) for n in COUNTS],
    TOLERANCE,
    bytes=lambda param, **_: 7 * param.nbytes,
    flops=lambda param, **_: 13 * param.numel(),
    launches=[_update_launch(False)],
    timed=_timed_cases(False),
)
CLIPPED_ADAMW = Op(
    "clipped_adamw",
    _return_updates(clipped_adamw),
    _return_updates(clipped_adamw_reference),
    [_case(n, 1.0, bound, 0.1, True) for n in COUNTS for bound in (None, 0.5, 1e4)],
    TOLERANCE,
    bytes=lambda param, **_: 7 * param.nbytes,
    flops=lambda param, **_: 16 * param.numel(),
    launches=[*_norm_launches(), _update_launch(True)],
    timed=_timed_cases(True),
)
