"""What autograd keeps of a layer between forward and backward, to the byte: the smallest set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.saved_bytes import saved_rows
from proactor.engine import GRPO, GRPOLoss
from proactor.engine import model as model_module
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.op import QWEN25, ModelShape
from tests.engine.engines import gradient, load, rollout
from tests.tiny import save_tiny

SMALL = ModelShape("small", 64, 2, 4, 2, 16, 160, 64)


def smallest_set(shape: ModelShape, item: int, rank: int = 16) -> int:
    """Bytes a token: both residuals, q and the attention's output, k and v, gate and up; the log-sum-exp in
    float32; and the seven narrow products of LoRA.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wide = 2 * shape.hidden + 2 * q + 2 * kv + 2 * shape.intermediate
    return item * wide + 4 * shape.heads + item * 7 * rank


def test_a_layer_at_the_shape_of_14b() -> None:
    total = sum(row[0] for row in saved_rows(QWEN25[0]))
    assert total == smallest_set(QWEN25[0], 2) and round(total / 1024) == 98


@pytest.mark.skipif(not (HAS_TRITON and interpreted()), reason="needs Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernels_keep_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = saved_rows(SMALL, dtype)
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    fused = saved_rows(SMALL, dtype)
    assert sum(row[0] for row in plain) == sum(row[0] for row in fused) == smallest_set(SMALL, dtype.itemsize)
    assert {by for row in fused for by in row[3]} >= {"span_attention", "add_rms_norm"}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_gradients_have_the_bits_of_saved_inputs(
    family: str, deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32; what is made again is what the forward computed, from the right weights."""
    save_tiny(tmp_path / "model", family)
    engine = load(tmp_path / "model", deterministic=deterministic)
    groups = rollout(engine)
    for group in groups:
        for sample, value in zip(group.samples, group.rewards, strict=True):
            sample.advantage = value - 0.5
    gradients = []
    for saved in (False, True):
        if saved:
            monkeypatch.setattr(model_module, "Remade", lambda kept, make: None)
        engine.zero_grad()
        engine.forward_backward(groups, GRPOLoss(GRPO()))
        engine.reduce_gradients()
        gradients.append(gradient(engine))
    assert torch.equal(*gradients) and bool(gradients[0].any())
