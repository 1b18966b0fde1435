"""The predicted peak of a CPU's gradient beside the bytes of all tensors that live, at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan import Shape, counting, gradient, open_engine
from proactor.engine import GRPO

SHAPES = {
    "one pass": Shape(2, 64, True, 300, 3, 3, 20),
    "by turns, KL": Shape(2, 64, False, 300, 3, 3, 20, chunk=120, beta=0.1),
}
MARGIN = 0.15
"""At these sizes; the 10% of `bench.plan` are of the whole process, which holds the model too."""


@pytest.mark.parametrize("name", SHAPES)
def test_the_peak_is_what_lives(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    engine = open_engine(shape, tmp_path / "model")
    gradient(engine, shape)
    engine.zero_grad()
    plan = engine.plan(shape.groups(), GRPO(beta=shape.beta))
    with counting(engine) as live:
        gradient(engine, shape)
    assert plan.peak - plan.held == pytest.approx(live.peak, rel=MARGIN)
    held = engine.memory()
    assert plan.held == pytest.approx(sum(held.values()) - held["kv"], rel=0.05)
