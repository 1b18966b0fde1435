"""Losses on per-token log-probabilities, against formulas written out in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, SFT, Engine, EngineError, Group, GRPOLoss, SFTLoss, TokenBatch
from tests.engine.engines import gradient, load, outside, prompts


def batch(n: int = 6, **changes: Any) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "target": torch.zeros(n, dtype=torch.int64),
        "old": -torch.rand(n, generator=generator),
        "sampled": -torch.rand(n, generator=generator),
        "advantage": torch.randn(n, generator=generator),
        "weight": torch.rand(n, generator=generator),
        "sample": torch.zeros(n, dtype=torch.int64),
        "position": torch.arange(n),
        "version": torch.zeros(n, dtype=torch.int64),
        "samples": [],
        "entropy": torch.zeros(n),
    }
    return TokenBatch(**{**values, **changes})


def by_hand(new: Tensor, b: TokenBatch, low: float, high: float) -> Tensor:
    """PPO's clipped objective, token by token."""
    total = torch.zeros(())
    for i in range(len(new)):
        ratio, a = torch.exp(new[i] - b.old[i]), b.advantage[i]
        total = total - b.weight[i] * min(
            ratio * a, min(max(ratio, torch.tensor(1 - low)), torch.tensor(1 + high)) * a
        )
    return total


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.1, 0.28), (0.2, 3.0)])
def test_clipping(low: float, high: float | None) -> None:
    b = batch(200)
    new = (b.old + 0.5 * torch.randn(200, generator=torch.Generator().manual_seed(1))).requires_grad_()
    loss, stats = GRPOLoss(GRPO(epsilon=low, epsilon_high=high))(new, b)
    upper = low if high is None else high
    expected = by_hand(new, b, low, upper)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(
        *(torch.autograd.grad(x, new, retain_graph=True)[0] for x in (loss, expected)), atol=1e-6
    )
    ratio = (new - b.old).exp()
    binds = ((ratio > 1 + upper) & (b.advantage > 0)) | ((ratio < 1 - low) & (b.advantage < 0))
    assert stats["clip_share"] == int(binds.sum()) > 0


def test_without_recorded_logprobs_the_ratio_is_one() -> None:
    b = batch(old=torch.full((6,), torch.nan), sampled=torch.full((6,), torch.nan))
    new = torch.randn(6).requires_grad_()
    loss, _ = GRPOLoss(GRPO(importance_cap=1.5))(new, b)
    assert torch.allclose(loss, -(b.weight * b.advantage).sum())
    assert torch.allclose(torch.autograd.grad(loss, new)[0], -b.weight * b.advantage)


def test_importance_is_truncated() -> None:
    b = batch()
    new = b.old.clone().requires_grad_()
    loss, _ = GRPOLoss(GRPO(importance_cap=1.2))(new, b)
    assert torch.allclose(loss, -(b.weight * b.advantage * (b.old - b.sampled).exp().clamp(max=1.2)).sum())
    assert bool(((b.old - b.sampled).exp() > 1.2).any())


def test_kl_is_k3() -> None:
    b = batch(reference=-torch.rand(6))
    assert b.reference is not None
    loss = GRPOLoss(GRPO(beta=0.3))
    assert loss.needs_reference and not GRPOLoss(GRPO()).needs_reference
    value, stats = loss(b.old, b)
    k3 = (b.reference - b.old).exp() - (b.reference - b.old) - 1
    assert torch.allclose(value, -(b.weight * b.advantage).sum() + 0.3 * (k3 * b.weight).sum())
    assert stats["kl"] == pytest.approx(float(k3.sum())) and float(k3.min()) >= 0


def test_sft_is_weighted_negative_log_likelihood() -> None:
    b = batch()
    assert torch.allclose(SFTLoss(SFT())(b.old, b), -(b.old * b.weight).sum())


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


def groups() -> list[Group]:
    """Two groups of samples of unlike lengths, one with masked tokens."""
    out = []
    for i, ids in enumerate(prompts(2, length=14)):
        samples = [outside(ids[:5], ids[5 : 8 + 2 * j], advantage=(-1.0) ** j + i) for j in range(3)]
        samples[2].mask = [t % 2 == 0 for t in range(len(samples[2].token_ids))]
        out.append(Group(ids[:5], samples))
    return out


def by_autograd(engine: Engine, normalizer: str) -> Tensor:
    """The policy gradient of separate sequences, each alone in its tree, divided by hand."""
    total, tokens, samples = torch.zeros_like(gradient(engine)), 0, 0
    for sample in (s for g in groups() for s in g.samples):
        trained = sum(sample.trained_mask())
        weight = 1 / trained if normalizer == "samples" else 1.0
        engine.zero_grad()
        engine.forward_backward(
            [Group(sample.prompt_ids, [sample])], lambda lp, b, w=weight: -(lp * b.advantage).sum() * w
        )
        total, tokens, samples = total + gradient(engine), tokens + trained, samples + 1
    engine.zero_grad()
    return total / {"tokens": tokens, "samples": samples, "constant": 32.0}[normalizer]


@pytest.mark.parametrize("normalizer", ["tokens", "samples", "constant"])
def test_normalizers(engine: Engine, normalizer: Any) -> None:
    expected = by_autograd(engine, normalizer)
    for part in (groups()[:1], groups()[1:]):
        engine.forward_backward(part, GRPOLoss(GRPO(normalizer=normalizer, constant=32.0)))
    engine.reduce_gradients()
    summed = gradient(engine)
    engine.zero_grad()
    assert float((summed - expected).norm() / expected.norm()) < 1e-5


def test_any_callable_is_a_loss(engine: Engine) -> None:
    seen: list[TokenBatch] = []

    def loss(logprobs: Tensor, b: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        seen.append(b)
        return (logprobs.exp() * b.advantage).sum(), {"hits": float(len(logprobs))}

    stats = engine.forward_backward(groups(), loss)
    assert stats["hits"] == stats["tokens"] == sum(len(b.target) for b in seen)
    b, samples = seen[0], [s for g in groups() for s in g.samples]
    for i in range(len(b.target)):
        sample = b.samples[int(b.sample[i])]
        assert (
            sample.token_ids[int(b.position[i])] == int(b.target[i])
            and sample.trained_mask()[int(b.position[i])]
        )
        assert float(b.advantage[i]) == sample.advantage
    assert len(b.samples) == len(samples) and bool((b.entropy > 0).all()) and bool(b.old.isnan().all())
    engine.zero_grad()


def test_the_reference_is_the_bare_model(engine: Engine) -> None:
    seen: list[TokenBatch] = []

    class Loss:
        needs_reference = True

        def __call__(self, logprobs: Tensor, b: TokenBatch) -> Tensor:
            seen.append(b)
            return logprobs.sum()

    [group] = groups()[:1]
    engine.forward_backward([group], Loss())
    engine.zero_grad()
    sample = group.samples[1]
    expected = engine.logprobs(
        [sample.prompt_ids + sample.token_ids], [(5, 5 + len(sample.token_ids))], adapter=False
    )[0]
    reference = seen[0].reference
    assert reference is not None and torch.allclose(reference[seen[0].sample == 1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (3, "^loss: its statistics should be a Mapping, not 3$"),
        ({"a": torch.ones(2)}, r"^loss: statistic 'a' should be one number, not a tensor of shape \(2,\)$"),
        ({"a": "x"}, "^loss: statistic 'a' should be one number, not 'x'$"),
    ],
)
def test_a_statistic_is_a_number(engine: Engine, statistics: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        engine.forward_backward(engine.sample([[1]]), lambda logprobs, batch: (logprobs.sum(), statistics))
    engine.zero_grad()


def test_a_statistic_may_hang_on_the_graph(engine: Engine, recwarn: pytest.WarningsRecorder) -> None:
    sums = engine.forward_backward(engine.sample([[1]]), lambda lp, batch: (lp.sum(), {"mean": lp.mean()}))
    assert sums["mean"] < 0 and not recwarn.list
    engine.zero_grad()
