"""The optimizer: torch's AdamW, and the schedule that its settings say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from proactor.engine import GRPO, AdamW
from proactor.engine.optimizer import learning_rate
from proactor.kernels.adamw import adamw
from tests.engine.engines import load, rollout


def test_schedules() -> None:
    constant = AdamW(lr=1.0, warmup=4)
    assert [learning_rate(constant, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = AdamW(lr=2.0, warmup=2, total=12, decay="linear", final=0.1)
    assert [learning_rate(linear, s) for s in (0, 1, 2, 7, 12, 50)] == pytest.approx(
        [1.0, 2.0, 2.0, 1.1, 0.2, 0.2]
    )
    cosine = AdamW(lr=1.0, total=8, decay="cosine")
    assert [learning_rate(cosine, s) for s in (0, 2, 4, 6, 8, 9)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 0.75, 1, 1)]
    )
    with pytest.raises(ValueError, match="decay=linear needs total"):
        AdamW(decay="linear")


def test_the_schedule_counts_steps(folder: Path) -> None:
    engine = load(folder)
    config = GRPO(lr=1e-2, warmup=2, total=4, decay="linear")
    rates = [engine.train(rollout(engine), config)["lr"] for _ in range(5)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.0])


def test_adamw_matches_torch_over_many_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    mine = torch.randn(257, generator=generator)
    peer = torch.nn.Parameter(mine.clone())
    optimizer = torch.optim.AdamW([peer], lr=1e-2, weight_decay=0.02)
    m, v = torch.zeros(257), torch.zeros(257)
    for step in range(1, 30):
        grad = torch.randn(257, generator=generator)
        peer.grad = grad.clone()
        optimizer.step()
        adamw(mine, grad, m, v, step, 1e-2, weight_decay=0.02)
    assert torch.allclose(mine, peer.detach(), atol=1e-6)
