"""An engine in bfloat16 on a CPU holds its linears in the order of products, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.engine import Sampling
from proactor.kernels.linear import onednn_available
from proactor.kernels.ordered import OrderedWeight
from tests.engine.engines import TRAIN, load, prompts, reward, sampler

TRAIN_SAMPLING = Sampling(n=4, max_tokens=8, seed=3)

pytestmark = pytest.mark.skipif(not onednn_available(torch.bfloat16), reason="no bfloat16 on this processor")


def test_which_engines_do(folder: Path) -> None:
    half, full = load(folder, dtype="bfloat16"), load(folder)
    linears = [base for layer in half.decoder.layers for base in layer.linears.values()]
    assert all(isinstance(base.weight(), OrderedWeight) for base in linears)
    assert half.linear_forms == ("dense bfloat16, in the order of oneDNN's products",)
    assert 2 * half.decoder.nbytes()["dense"] == full.decoder.nbytes()["dense"]
    exact = load(folder, dtype="bfloat16", deterministic=True)
    assert exact.linear_forms == ("dense bfloat16",) and full.linear_forms == ("dense float32",)


def test_it_samples_and_trains_as_with_plain_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("proactor.engine.base_linear.can_order", lambda weight: False)
        engine = load(folder, dtype="bfloat16")
        groups = engine.sample(prompts(3, length=9), TRAIN_SAMPLING)
        stats = engine.train(reward(groups), TRAIN)
        results.append(([s.token_ids for g in groups for s in g.samples], stats["loss"], stats["grad_norm"]))
        assert sampler(engine).scheduler.idle
    assert results[0][0] == results[1][0]
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-2)
