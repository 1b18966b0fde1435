"""An engine on a CPU holds its dense linears in the order of products, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.engine import Sampling
from proactor.kernels.linear import onednn_available
from proactor.kernels.ordered import OrderedWeight
from tests.engine.engines import TRAIN, load, prompts, reward, sampler

TRAIN_SAMPLING = Sampling(n=4, max_tokens=8, seed=3)

DTYPES = [
    pytest.param(name, marks=pytest.mark.skipif(not onednn_available(dtype), reason="not on this processor"))
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
]


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """These weights are too small to measure."""
    monkeypatch.setattr("proactor.engine.base_linear.worth_ordering", lambda shape, dtype: True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_which_engines_do(folder: Path, dtype: str) -> None:
    engine, exact = load(folder, dtype=dtype), load(folder, dtype=dtype, deterministic=True)
    linears = [base for layer in engine.decoder.layers for base in layer.linears.values()]
    assert all(isinstance(base.weight(), OrderedWeight) for base in linears)
    assert engine.linear_forms == (f"dense {dtype}, in the order of oneDNN's products",)
    assert engine.decoder.nbytes()["dense"] == exact.decoder.nbytes()["dense"]
    assert exact.linear_forms == (f"dense {dtype}",)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_samples_and_trains_as_with_plain_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    results = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("proactor.engine.base_linear.can_order", lambda weight: False)
        engine = load(folder, dtype=dtype)
        groups = engine.sample(prompts(3, length=9), TRAIN_SAMPLING)
        stats = engine.train(reward(groups), TRAIN)
        results.append(([s.token_ids for g in groups for s in g.samples], stats["loss"], stats["grad_norm"]))
        assert sampler(engine).scheduler.idle
    assert results[0][0] == results[1][0]
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-2 if dtype == "bfloat16" else 1e-4)
