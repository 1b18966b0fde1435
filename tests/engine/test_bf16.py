"""bfloat16 against the float32 reference on a CPU: the same trees give the same loss and gradient, as far as
8 bits of mantissa go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, Group, GRPOLoss, SFTLoss
from tests.engine.engines import EOS, gradient, load, outside, prompts, shake
from tests.tiny import save_tiny

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CARD])]
LOSS, GRADIENT = 5e-3, 4e-2
"""Relative errors of the loss and the gradient's norm; the torch forms in bfloat16 show 8e-4 and 1.6e-2."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with heads of 64: what the kernels of a card take without padding."""
    folder = tmp_path_factory.mktemp("bf16") / "model"
    save_tiny(
        folder, dtype=torch.bfloat16, eos_token_id=EOS, hidden_size=128, intermediate_size=256, head_dim=64
    )
    return folder


def groups() -> list[Group]:
    """Three prompts that begin alike, with three samples of unlike lengths each, drawn by another policy."""
    out = []
    for ids in prompts(3, length=30, shared=20):
        samples = [outside(ids[:24], ids[24 : 40 + 4 * j], advantage=(1.0, -0.75, 0.5)[j]) for j in range(3)]
        for j, sample in enumerate(samples):
            sample.policy_logprobs = [-4.6 + 0.05 * ((t + j) % 5 - 2) for t in range(len(sample.token_ids))]
        out.append(Group(ids[:24], samples))
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", [GRPOLoss(GRPO(epsilon=5.0, beta=0.1)), SFTLoss(SFT())], ids=["grpo", "sft"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_same_trees_give_the_same_loss_and_gradient(
    model: Path, monkeypatch: pytest.MonkeyPatch, device: str, loss: Any, quantization: Any
) -> None:
    """A clip far away: which side of it a ratio falls on is not a matter of rounding."""
    results = []
    for where, dtype, kernels in (("cpu", "float32", "reference"), (device, "bfloat16", "auto")):
        monkeypatch.setenv("PROACTOR_KERNELS", kernels)
        engine = load(model, stir=False, device=where, dtype=dtype, quantization=quantization)
        shake(engine, size=0.02)
        stats = engine.forward_backward(groups(), loss)
        engine.reduce_gradients()
        results.append((stats["loss"], gradient(engine).double().cpu()))
    (expected, reference), (value, ours) = results
    assert abs(value - expected) <= LOSS * abs(expected)
    assert float((ours - reference).norm() / reference.norm()) <= GRADIENT
    assert float(reference.norm()) > 0
