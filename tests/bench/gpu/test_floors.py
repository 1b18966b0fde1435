"""The arithmetic of floors, beside figures worked out by hand for Qwen2.5-14B on an H200."""

from __future__ import annotations

import pytest

from bench.gpu import floors
from proactor.kernels.ceilings import Ceilings
from proactor.kernels.op import QWEN25

B14 = QWEN25[0]
H200 = Ceilings(copy=4.3e12, product=790e12)


@pytest.mark.parametrize(
    ("batch", "context", "milliseconds", "bound"),
    [
        (1, 2048, 2.08, "memory"),
        (16, 2048, 3.54, "memory"),
        (64, 2048, 8.21, "memory"),
        (256, 2048, 26.9, "memory"),
        (256, 512, 9.24, "arithmetic"),
    ],
)
def test_a_decode_step_takes_at_least(batch: int, context: int, milliseconds: float, bound: str) -> None:
    seconds, limit = H200.floor(
        floors.decode_bytes(B14, batch, context), floors.decode_flops(B14, batch, context)
    )
    assert (seconds * 1e3, limit) == (pytest.approx(milliseconds, rel=5e-3), bound)


def test_counts_of_the_14b_model() -> None:
    count = floors.operations(B14)
    assert count.linear == 2 * 48 * 275_251_200 and count.adapter == 2 * 68_812_800
    held = 0.51587 * 48 * 275_251_200 + 2 * (68_812_800 + 152064 * 5120)
    row = 4 * (48 * (6 * 5120 + 2 * 5120 + 2 * 1024 + 3 * 13824) + 152064)
    assert floors.decode_bytes(B14, 1, 0) == pytest.approx(held + row, rel=1e-3)
    assert floors.decode_bytes(B14, 3, 10) - floors.decode_bytes(B14, 3, 0) == 3 * 10 * 48 * 2 * 1024 * 2


def test_training_costs_sixty_teraflops_a_thousand_rows_and_half_as_much_again_with_recomputation() -> None:
    rows, pairs = 2048, 2048 * 1024
    plain = floors.train_flops(B14, rows, pairs, rows) / rows
    checkpointed = floors.train_flops(B14, rows, pairs, rows, recompute=True) / rows
    assert plain == pytest.approx(59.9e9, rel=2e-3)
    assert checkpointed == pytest.approx(89.0e9, rel=2e-3)


def test_two_bf16_forwards_are_a_fiftieth_of_a_nat_apart() -> None:
    assert floors.rounding_gap(B14) == pytest.approx(0.0191, abs=1e-4)
