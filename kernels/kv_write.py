"""Bias, rotary embedding and the KV-cache write of the sampler, in one pass over the stacked projection.

    x = qkv + bias,   q, k = rotation of x's q and k heads,   keys[:, slots] = k,   values[:, slots] = v

Rotary embedding: Su et al., arXiv 2104.09864.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import jit, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, settings_for
from proactor.kernels.rope import (
    TOLERANCE,
    check_rotation,
    draw_angles,
    rope_reference,
    rotate_halves,
    runs_triton,
)

SETTINGS = {"default": {"HEADS": 16, "WARPS": 4}, "interpreter": {"HEADS": 4, "WARPS": 4}}
Heads = tuple[Tensor, Tensor, Tensor]


def rope_into_pages_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
) -> Heads:
    """`rope_into_pages` in plain torch: a bias addition, `rope_reference` and two index copies."""
    kv_heads, _, width = keys.shape
    x = (qkv if bias is None else qkv + bias).view(qkv.shape[0], qkv.shape[1] // width, width)
    rotated = x.shape[1] - kv_heads
    q, k = rope_reference(x[:, :rotated], cos, sin).split((rotated - kv_heads, kv_heads), dim=1)
    v = x[:, rotated:]
    kept = slots >= 0
    if bool(kept.all()):
        keys.index_copy_(1, slots, k.transpose(0, 1))
        values.index_copy_(1, slots, v.transpose(0, 1))
    else:
        keys.index_copy_(1, slots[kept], k[kept].transpose(0, 1))
        values.index_copy_(1, slots[kept], v[kept].transpose(0, 1))
    return q, k, v


# --- Triton ---


@jit
def rope_into_pages_kernel(
    x_ptr,
    bias_ptr,
    cos_ptr,
    sin_ptr,
    slot_ptr,
    out_ptr,
    key_ptr,
    value_ptr,
    q_heads,
    kv_heads,
    out_heads,
    half,
    x_row,
    store_slots,
    store_head,
    store_slot,
    BIAS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Grid (rows, ceil(heads / HEADS)), tile [HEADS, HALF]: q, k (BIAS: and v) to out, k, v to pages."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    rotated = q_heads + kv_heads
    inside = (head < rotated + kv_heads) & (column < half)
    at = head * (2 * half) + column
    x1 = tl.load(x_ptr + row * x_row + at, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + row * x_row + at + half, mask=inside, other=0.0).to(tl.float32)
    # round to the dtype, as a linear layer does: the trainer's rotation starts from the same bits
    if BIAS:
        x1 += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x2 += tl.load(bias_ptr + at + half, mask=inside, other=0.0).to(tl.float32)
        x1 = x1.to(out_ptr.dtype.element_ty).to(tl.float32)
        x2 = x2.to(out_ptr.dtype.element_ty).to(tl.float32)
    y1, y2 = rotate_halves(x1, x2, cos_ptr, sin_ptr, row, column, half, False)
    y1, y2 = tl.where(head < rotated, y1, x1), tl.where(head < rotated, y2, x2)
    slot = tl.load(slot_ptr + row)
    overflow = slot >= store_slots  # no such slot: the row becomes NaN, so that its attention shows it
    y1, y2 = tl.where(overflow, float("nan"), y1), tl.where(overflow, float("nan"), y2)
    out = out_ptr + row * out_heads * (2 * half) + at
    tl.store(out, y1, mask=inside & (head < out_heads))
    tl.store(out + half, y2, mask=inside & (head < out_heads))
    written = (slot >= 0) & (slot < store_slots)
    last = tl.where(written, rotated + kv_heads, 0)  # end of the heads that are written
    place = slot * store_slot + column
    key = key_ptr + (head - q_heads).to(tl.int64) * store_head + place
    is_key = (column < half) & (head >= q_heads) & (head < tl.minimum(last, rotated))
    tl.store(key, y1, mask=is_key)
    tl.store(key + half, y2, mask=is_key)
    value = value_ptr + (head - rotated).to(tl.int64) * store_head + place
    is_value = (column < half) & (head >= rotated) & (head < last)
    tl.store(value, y1, mask=is_value)
    tl.store(value + half, y2, mask=is_value)


def _launch(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Heads:
    kv_heads, store_slots, width = keys.shape
    rows, heads = qkv.shape[0], qkv.shape[1] // width
    qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
    rotated = heads - kv_heads
    out_heads = rotated if bias is None else heads
    out = torch.empty((rows, out_heads, width), dtype=qkv.dtype, device=qkv.device)
    if rows:
        use = settings_for(SETTINGS, qkv.device)
        inputs = cos.contiguous(), sin.contiguous(), slots.contiguous()
        sizes = rotated - kv_heads, kv_heads, out_heads, width // 2, qkv.stride(0)
        rope_into_pages_kernel[(rows, triton.cdiv(heads, use["HEADS"]))](
            *(qkv, qkv if bias is None else bias.contiguous(), *inputs, out, keys, values),
            *(*sizes, store_slots, keys.stride(0), keys.stride(1)),
            BIAS=bias is not None,
            HEADS=use["HEADS"],
            HALF=triton.next_power_of_2(width // 2),
            num_warps=use["WARPS"],
        )
    v = qkv.view(rows, heads, width)[:, rotated:] if bias is None else out[:, rotated:]
    return out[:, : rotated - kv_heads], out[:, rotated - kv_heads : rotated], v


def rope_into_pages(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None = None,
) -> Heads:
    """Add ``bias``, rotate q and k, write k and v to the cache; returns q [T, Hq, D], k and v [T, Hkv, D].

    qkv [T, (Hq + 2 Hkv) D], the output of the stacked linear; cos, sin [T, D/2]; keys, values [Hkv, S, D];
    slots int64 [T]: each row's place in them, unique, negative to write nothing; bias [(Hq + 2 Hkv) D] or
    None. The results are views; without a bias, v is a view of ``qkv``.

    Raises KernelError when a gradient is required (there is none), and when shapes, dtypes or devices do not
    match. For a slot of S or more, the torch form raises IndexError; the kernel, which cannot raise, writes
    nothing and gives NaN in q and k.
    """
    _check(qkv, cos, sin, slots, keys, values, bias)
    form = _launch if runs_triton(qkv) else rope_into_pages_reference
    return form(qkv, cos, sin, slots, keys, values, bias)


def _check(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> None:
    if keys.ndim != 3 or keys.stride(2) != 1 or keys.dtype != qkv.dtype or keys.device != qkv.device:
        _refuse("keys", keys, f"{qkv.dtype} [Hkv, S, D] on {qkv.device}, contiguous in D")
    kv_heads, _, width = keys.shape
    if (
        values.shape != keys.shape
        or values.stride() != keys.stride()
        or values.dtype != keys.dtype
        or values.device != keys.device
    ):
        _refuse(
            "values", values, f"laid out as keys are, {keys.dtype} {tuple(keys.shape)} by {keys.stride()}"
        )
    if qkv.ndim != 2 or qkv.shape[1] % width or qkv.shape[1] // width <= 2 * kv_heads:
        _refuse("qkv", qkv, f"[T, (Hq + 2 * {kv_heads}) * {width}]")
    if qkv.requires_grad and torch.is_grad_enabled():
        raise KernelError("qkv: requires a gradient, which the cache cannot carry; use rope")
    rows, stacked = qkv.shape
    check_rotation("qkv", qkv.view(rows, stacked // width, width), cos, sin)
    if slots.shape != (rows,) or slots.dtype != torch.int64 or slots.device != qkv.device:
        _refuse("slots", slots, f"int64 [{rows}] on {qkv.device}")
    if bias is not None and (
        bias.shape != (stacked,) or bias.dtype != qkv.dtype or bias.device != qkv.device
    ):
        _refuse("bias", bias, f"{qkv.dtype} [{stacked}] on {qkv.device}")


def _refuse(name: str, tensor: Tensor, want: str) -> NoReturn:
    layout = f"{tensor.dtype} {tuple(tensor.shape)} by {tensor.stride()} on {tensor.device}"
    raise KernelError(f"{name}: {layout}, not {want}")


# --- record ---


def _with_stores(**arguments: Tensor) -> tuple[Tensor, ...]:
    return *rope_into_pages(**arguments), arguments["keys"], arguments["values"]


def _reference_with_stores(**arguments: Tensor) -> tuple[Tensor, ...]:
    return *rope_into_pages_reference(**arguments), arguments["keys"], arguments["values"]


def _case(rows: int, heads: int, kv_heads: int, width: int, bias: bool, slots: int, silent: int = 0) -> Case:
    """``silent``: every silent-th row writes nothing (0: all rows write)."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        cos, sin = draw_angles(rows, width // 2, generator, device)
        where = torch.randperm(slots, generator=generator, device=device)[:rows]
        if silent:
            where[::silent] = -1
        stacked = (heads + 2 * kv_heads) * width
        rest = {"bias": draw(stacked)} if bias else {}
        stores = {"keys": draw(kv_heads, slots, width), "values": draw(kv_heads, slots, width)}
        angles = {"cos": cos.to(dtype), "sin": sin.to(dtype)}
        return {"qkv": draw(rows, stacked), **angles, "slots": where, **stores, **rest}

    flags = ("b" if bias else "") + (f"s{silent}" if silent else "")
    return Case(f"{rows}x{heads}+{kv_heads}x{width}{flags}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(rows, shape.heads, shape.kv_heads, shape.head_dim, True, 65536) for rows in (64, 2048)]


def _bytes(
    qkv: Tensor, slots: Tensor, keys: Tensor, cos: Tensor, bias: Tensor | None = None, **_: Tensor
) -> int:
    stored = 2 * int((slots >= 0).sum()) * keys.shape[0] * keys.shape[2] * keys.element_size()
    unread = qkv.nbytes * keys.shape[0] * keys.shape[2] // qkv.shape[1] if bias is None else 0
    small = 2 * cos.nbytes + slots.nbytes + (0 if bias is None else bias.nbytes)
    return 2 * qkv.nbytes - unread + stored + small


def _launches() -> list[Launch]:
    names = ("x_ptr", "bias_ptr", "cos_ptr", "sin_ptr", "out_ptr", "key_ptr", "value_ptr")
    sizes = ("q_heads", "kv_heads", "out_heads", "half", "x_row", "store_slots", "store_head", "store_slot")
    types = dict.fromkeys(names, "*bf16") | {"slot_ptr": "*i64"} | dict.fromkeys(sizes, "i32")
    heads, warps = SETTINGS["default"]["HEADS"], SETTINGS["default"]["WARPS"]
    return [
        Launch(rope_into_pages_kernel, types, {"BIAS": bias, "HEADS": heads, "HALF": half}, warps, 1)
        for half in (32, 64)
        for bias in (False, True)
    ]


CASES = (
    _case(1, 1, 1, 2, True, 1),
    _case(3, 2, 1, 6, False, 5),
    _case(5, 4, 2, 34, True, 7, 3),
    _case(4, 6, 3, 16, False, 9, 2),
    _case(0, 2, 1, 8, True, 3),
)

ROPE_INTO_PAGES = Op(
    "rope_into_pages",
    _with_stores,
    _reference_with_stores,
    CASES,
    TOLERANCE,
    bytes=_bytes,
    flops=lambda qkv, **_: 4 * qkv.numel(),
    launches=_launches(),
    timed=_timed_cases,
)
