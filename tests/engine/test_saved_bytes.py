"""What autograd keeps of a layer between forward and backward, to the byte: nothing beyond the smallest set."""

from __future__ import annotations

import pytest
import torch

from bench.saved_bytes import saved_rows
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.op import QWEN25, ModelShape

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
