"""Keyed uniforms on the device have the bits of the host's, which test_sample.py checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.noise import keyed_uniforms, uniforms

DEVICE = torch.device("cpu" if interpreted() or not HAS_TRITON else "cuda")
MODES = [
    "reference",
    pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="no triton here")),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 9, 2**32 + 5, 2**63 - 1, 2**63 + 11, 2**64 - 1])
def test_equals_the_host(seed: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    group = np.array([0, 1, 2**31, 2**32 - 1, 7], np.int64)
    sample, position = np.arange(5) * 3, np.arange(5)[::-1].copy() + 2**20
    signed = seed - 2**64 if seed >= 2**63 else seed
    keys = torch.tensor(
        [[signed, 4, int(g), int(s), int(p)] for g, s, p in zip(group, sample, position, strict=True)]
    )
    drawn = keyed_uniforms(keys.to(DEVICE))
    assert drawn.dtype == torch.float64
    assert np.array_equal(drawn.cpu().numpy(), uniforms(seed, 4, group, sample, position))


def test_all_but_the_seed_count_modulo_32_bits() -> None:
    """So a caller must not use wider keys; `Engine.sample` refuses them."""
    key = torch.tensor([[9, 1, 2, 3, 4]], device=DEVICE)
    for column in range(1, 5):
        for turns in (-1, 1, 5):
            wider = key.clone()
            wider[0, column] += turns << 32
            assert torch.equal(keyed_uniforms(wider), keyed_uniforms(key))
    wider = key.clone()
    wider[0, 0] += 1 << 32
    assert not torch.equal(keyed_uniforms(wider), keyed_uniforms(key))


def test_bad_keys_are_named() -> None:
    for keys in (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), torch.zeros(3, 5)):
        with pytest.raises(KernelError, match="keys: "):
            keyed_uniforms(keys)
