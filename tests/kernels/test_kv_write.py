"""The sampler's pass into the cache equals rotation and index copies, and writes nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.kv_write import rope_into_pages
from proactor.kernels.rope import rope

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
FORMS = ["reference", pytest.param("triton", marks=needs_triton)]

HEADS, KV_HEADS, WIDTH, SLOTS = 3, 2, 6, 9


def inputs(rows: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qkv, cos, sin, bias."""
    torch.manual_seed(0)
    stacked = (HEADS + 2 * KV_HEADS) * WIDTH
    angle = torch.rand(rows, WIDTH // 2, device=DEVICE) * 6
    bias = torch.randn(stacked, device=DEVICE).to(dtype)
    return (
        torch.randn(rows, stacked, device=DEVICE).to(dtype),
        angle.cos().to(dtype),
        angle.sin().to(dtype),
        bias,
    )


def stores() -> tuple[Tensor, Tensor, Tensor]:
    """A buffer, and keys and values inside it with other layers' pages before, between and behind."""
    buffer = torch.arange(float(KV_HEADS * SLOTS * 5 * WIDTH), device=DEVICE).view(KV_HEADS, SLOTS, 5, WIDTH)
    return buffer, buffer[:, :, 1], buffer[:, :, 3]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_rotation_and_index_copies(form: str, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine does in torch, there to the bit."""
    monkeypatch.setenv("PROACTOR_KERNELS", form)
    qkv, cos, sin, bias = inputs()
    slots = torch.tensor([7, -1, 0, 3], device=DEVICE)
    buffer, keys, values = stores()
    expected = buffer.clone()
    q, k, v = rope_into_pages(qkv, cos, sin, slots, keys, values, bias if biased else None)
    rows = (qkv + bias if biased else qkv).view(4, -1, WIDTH)
    turned = rope(rows[:, : HEADS + KV_HEADS], cos, sin)
    want = (*turned.split((HEADS, KV_HEADS), dim=1), rows[:, HEADS + KV_HEADS :])
    tolerance = 0.0 if form == "reference" else 1e-6
    for ours, theirs in zip((q, k, v), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for row, slot in ((0, 7), (2, 0), (3, 3)):
        expected[:, slot, 1], expected[:, slot, 3] = want[1][row], want[2][row]
    torch.testing.assert_close(buffer, expected, rtol=tolerance, atol=tolerance)


@needs_triton
def test_bias_is_rounded_before_the_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that sampler and trainer, whose linear adds the bias, rotate the same bits."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    qkv, cos, sin, bias = inputs(7, torch.float16)
    slots = torch.full((7,), -1, device=DEVICE)
    store = torch.zeros(KV_HEADS, SLOTS, WIDTH, dtype=torch.float16, device=DEVICE)
    ours = rope_into_pages(qkv, cos, sin, slots, store, store.clone(), bias)
    apart = rope_into_pages(qkv + bias, cos, sin, slots, store, store.clone())
    assert all(torch.equal(a, b) for a, b in zip(ours, apart, strict=True))


@needs_triton
@pytest.mark.parametrize("slot", [SLOTS, SLOTS + 1, 2**40])
def test_a_slot_past_the_store_shows_and_writes_nothing(slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    qkv, cos, sin, bias = inputs(2)
    buffer, keys, values = stores()
    before = buffer.clone()
    slots = torch.tensor([slot, -1], device=DEVICE)
    q, k, _ = rope_into_pages(qkv, cos, sin, slots, keys, values, bias)
    assert torch.equal(buffer, before)
    for part in (q, k):
        assert bool(part[0].isnan().all()) and not bool(part[1].isnan().any())


def test_torch_refuses_a_slot_past_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "reference")
    qkv, cos, sin, _ = (t.cpu() for t in inputs(2))
    store = torch.zeros(KV_HEADS, SLOTS, WIDTH)
    with pytest.raises(IndexError):
        rope_into_pages(qkv, cos, sin, torch.tensor([0, SLOTS]), store, store.clone())


def test_refuses_what_does_not_fit() -> None:
    qkv, cos, sin, bias = (t.cpu() for t in inputs())
    store = torch.zeros(KV_HEADS, SLOTS, WIDTH)
    good = {
        "qkv": qkv,
        "cos": cos,
        "sin": sin,
        "slots": torch.arange(4),
        "keys": store,
        "values": store.clone(),
        "bias": bias,
    }
    rope_into_pages(**good)
    wrong = {
        "qkv": [qkv[:, :-1], qkv[:, : 2 * KV_HEADS * WIDTH], qkv.clone().requires_grad_(), qkv[0]],
        "cos": [cos[:2]],
        "sin": [sin[:, :1]],
        "slots": [torch.arange(3), torch.arange(4).int()],
        "keys": [store[0], store.half(), store.transpose(1, 2).contiguous().transpose(1, 2)],
        "values": [store[:1], store.half(), store.transpose(0, 1).contiguous().transpose(0, 1)],
        "bias": [bias[:-1], bias.half()],
    }
    for name, tensors in wrong.items():
        for tensor in tensors:
            with pytest.raises(KernelError, match=f"^{name}: "):
                rope_into_pages(**{**good, name: tensor})
