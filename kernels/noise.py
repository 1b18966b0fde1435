"""Keyed noise: one uniform per (seed, step, group, sample, position), by Philox4x32-10.

The counter is (position, sample, group, step), the Philox key is the 64-bit seed. A token drawn with such a
uniform does not depend on its batch, its rank or the order of draws. `uniforms` computes on the host,
`keyed_uniforms` on the device of its keys, with the same bits. Philox: Salmon et al., SC 2011.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.kernels.jit import jit_any, tl, triton
from proactor.kernels.op import Arguments, Case, Launch, ModelShape, Op, require, use_triton

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MOST = 0xFFFFFFFFFFFFFFFF


def philox(counter: NDArray[np.uint64], seed: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10: counters [N, 4] and 64-bit seeds, one or [N] -> [N, 4]; 32-bit words, held as uint64."""
    x0, x1, x2, x3 = (counter[:, i] & _LOW for i in range(4))
    key = np.asarray(seed, np.uint64)
    k0, k1 = key & _LOW, key >> _HALF
    for _ in range(10):
        p0, p1 = _M0 * x0, _M1 * x2
        x0, x1, x2, x3 = (p1 >> _HALF) ^ x1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ x3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([x0, x1, x2, x3], axis=1)


def uniforms(
    seed: int | NDArray[np.uint64],
    step: int | NDArray[np.int64],
    group: NDArray[np.int64],
    sample: NDArray[np.int64],
    position: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Uniforms float64 [N] in (0, 1), of 53 random bits; row i has the key (seed, step, group[i], ...).

    Seed and step are one number, or [N]. The seed counts modulo 2^64; step, group, sample and position count
    modulo 2^32.
    """
    counter = np.stack([position, sample, group, np.broadcast_to(step, len(group))], axis=1).astype(np.uint64)
    words = philox(counter, seed & _MOST if isinstance(seed, int) else seed)
    bits = (words[:, 0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[:, 1] >> np.uint64(6))
    out: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return out


def keyed_uniforms_reference(keys: Tensor) -> Tensor:
    """`keyed_uniforms` by `uniforms`, computed on the host."""
    seed, *rest = keys.cpu().numpy().T
    return torch.from_numpy(uniforms(seed.astype(np.uint64), *rest)).to(keys.device)


# --- Triton ---


@jit_any("rows")
def keyed_uniforms_kernel(keys_ptr, out_ptr, rows, BLOCK: tl.constexpr):
    """Grid (ceil(rows / BLOCK)), tile [BLOCK keys]: uniforms float64 [B] of keys int64 [B, 5]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    key = keys_ptr + row.to(tl.int64) * 5
    seed = tl.load(key, mask=inside, other=0)
    x3 = tl.load(key + 1, mask=inside, other=0).to(tl.uint32)
    x2 = tl.load(key + 2, mask=inside, other=0).to(tl.uint32)
    x1 = tl.load(key + 3, mask=inside, other=0).to(tl.uint32)
    x0 = tl.load(key + 4, mask=inside, other=0).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    m0 = tl.full([BLOCK], 0xD2511F53, tl.uint32)
    m1 = tl.full([BLOCK], 0xCD9E8D57, tl.uint32)
    w0 = tl.full([BLOCK], 0x9E3779B9, tl.uint32)
    w1 = tl.full([BLOCK], 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(m0, x0), m0 * x0
        high1, low1 = tl.umulhi(m1, x2), m1 * x2
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    bits = (x0 >> 5).to(tl.int64) * 67108864 + (x1 >> 6).to(tl.int64)
    tl.store(out_ptr + row, (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16, mask=inside)


BLOCK = 128


def keyed_uniforms(keys: Tensor) -> Tensor:
    """Uniforms float64 [B] of keys int64 [B, 5], on their device: the bits of `uniforms`.

    A key is (seed, step, group, sample, position): an unsigned 64-bit seed is stored as its two's complement,
    and the other four count modulo 2^32. Raises KernelError for keys of another shape or dtype.
    """
    require(keys.dim() == 2 and keys.shape[1] == 5, "keys", f"shape {tuple(keys.shape)}, not [rows, 5]")
    require(keys.dtype == torch.int64, "keys", f"{keys.dtype}, not int64")
    if not use_triton(keys):
        return keyed_uniforms_reference(keys)
    out = torch.empty(len(keys), dtype=torch.float64, device=keys.device)
    if len(keys):
        keyed_uniforms_kernel[(triton.cdiv(len(keys), BLOCK),)](
            keys.contiguous(), out, len(keys), BLOCK, num_warps=4
        )
    return out


# --- record ---


def _case(rows: int) -> Case:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Arguments:
        keys = torch.randint(-(2**40), 2**40, (rows, 5), generator=generator, device=device)
        keys[: rows // 2, :2] = 7
        return {"keys": keys}

    return Case(f"{rows}", make)


def _timed_cases(shape: ModelShape) -> list[Case]:
    return [_case(256)]


KEYED_UNIFORMS = Op(
    "keyed_uniforms",
    keyed_uniforms,
    keyed_uniforms_reference,
    [_case(n) for n in (0, 1, 5, 128, 131)],
    {torch.float32: 0.0},
    bytes=lambda keys: keys.nbytes + 8 * len(keys),
    flops=lambda keys: 0,
    launches=[
        Launch(
            keyed_uniforms_kernel, {"keys_ptr": "*i64", "out_ptr": "*fp64", "rows": "i32"}, {"BLOCK": BLOCK}
        )
    ],
    timed=_timed_cases,
)
