"""A tree in chunks has the gradient, the log-probabilities and the statistics of one pass, for any cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from proactor.engine import GRPO, SFT, EngineError, Group, GRPOLoss, Sample, SFTLoss, Tree
from proactor.engine import tree_gradient as module
from proactor.engine.layout import TokenBatch
from proactor.engine.loss import Loss
from proactor.engine.model import Decoder
from proactor.engine.tree_gradient import Backward, backward
from tests.engine.engines import adapter, gradient, load, rollout
from tests.engine.trees import caterpillar, groups, long_tokens, widened


@pytest.fixture(scope="module")
def wide(folder: Path) -> Decoder:
    """Layers of attention with grouped heads, in float64."""
    return widened(load(folder))


def result(decoder: Decoder, tree: Tree, loss: Loss, most: int) -> tuple[Tensor, Backward]:
    assert decoder.lora is not None
    decoder.lora.attach_grad()
    decoder.lora.grad.zero_()
    done = backward(decoder, tree, loss, most)
    return decoder.lora.grad.clone(), done


def couple(logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that couples the tokens of a sample: the square of its sum."""
    sums = torch.zeros(len(batch.samples), dtype=logprobs.dtype).index_add(0, batch.sample, logprobs)
    return (sums**2).sum() / 100 + (logprobs * batch.weight).sum(), {"longest": sums.detach().min()}


class BySample:
    """Negative log-likelihood, each sample's tokens weighing one together, with a reference."""

    normalizer = "samples"
    needs_reference = True

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
        """The sum."""
        assert batch.reference is not None
        return ((logprobs - batch.reference) ** 2 * batch.weight).sum()


LOSSES: dict[str, Callable[[], Loss]] = {
    "sft": lambda: SFTLoss(SFT()),
    "grpo": lambda: GRPOLoss(GRPO(beta=0.3)),
    "by sample": lambda: SFTLoss(SFT(normalizer="samples")),
    "coupled": lambda: couple,
    "own, with a reference": BySample,
}


def advantaged(several: list[Group]) -> list[Group]:
    for group in several:
        for i, sample in enumerate(group.samples):
            sample.advantage = (i % 3 - 1) * 0.7
            sample.policy_logprobs = [-2.0 - 0.1 * j for j in range(len(sample.token_ids))]
    return several


@pytest.mark.parametrize("name", LOSSES)
def test_any_cut_has_the_gradient_of_one_pass(wide: Decoder, name: str) -> None:
    @settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
    @given(groups(long_tokens), st.integers(4, 50))
    def check(several: list[Group], most: int) -> None:
        tree = Tree(advantaged(several))
        if all(group.masked for group in several):
            return
        whole, one = result(wide, tree, LOSSES[name](), tree.rows)
        parts, many = result(wide, tree, LOSSES[name](), most)
        assert float((parts - whole).abs().max()) <= 1e-9 * max(1e-3, float(whole.abs().max()))
        assert many.value == pytest.approx(one.value, rel=1e-9, abs=1e-9)
        assert torch.allclose(many.logprobs, one.logprobs, rtol=0, atol=1e-9)
        assert torch.allclose(many.batch.entropy, one.batch.entropy.to(torch.float64), rtol=0, atol=1e-6)
        assert {k: float(v) for k, v in many.statistics.items()} == pytest.approx(
            {k: float(v) for k, v in one.statistics.items()}, rel=1e-6
        )

    check()


@pytest.mark.parametrize("most", [5, 40])
def test_fifty_turns(wide: Decoder, most: int) -> None:
    tree = Tree(caterpillar(50))
    whole, _ = result(wide, tree, GRPOLoss(GRPO()), tree.rows)
    parts, _ = result(wide, tree, GRPOLoss(GRPO()), most)
    assert float((parts - whole).abs().max()) <= 1e-9 * float(whole.abs().max())


def test_kept_rows_run_twice_and_the_rest_once(folder: Path) -> None:
    engine = load(folder, chunk_rows=12)
    before = engine.decoder.rows_computed
    engine.forward_backward(caterpillar(10), GRPOLoss(GRPO()))
    tree = Tree(caterpillar(10))
    trunk = tree.rows - 10 * 2 * 2
    ran = engine.decoder.rows_computed - before
    assert tree.rows < ran <= tree.rows + trunk


def test_a_step_in_chunks_is_the_step_in_one(folder: Path) -> None:
    steps = []
    for rows in (None, 9):
        engine = load(folder, chunk_rows=rows)
        drawn = rollout(engine)
        stats = engine.train(drawn, GRPO(lr=1e-2, beta=0.1))
        steps.append((adapter(engine), stats["loss"], stats["kl"], stats["sampler_trainer_gap"]))
    assert torch.allclose(steps[0][0], steps[1][0], rtol=0, atol=2e-4)
    assert steps[0][1:3] == pytest.approx(steps[1][1:3], rel=1e-3, abs=1e-6)
    assert steps[1][3] < 1e-5


def test_deterministic_chunks_repeat_and_agree_with_the_sampler(folder: Path) -> None:
    gradients = []
    for _ in range(2):
        engine = load(folder, deterministic=True, chunk_rows=9)
        drawn = rollout(engine)
        assert engine.trainer is not None
        tally = engine.trainer.forward_backward(drawn, GRPOLoss(GRPO()), version=engine.policy_version)
        assert tally.sums["gap_tokens"] > 0 and tally.maxima["ratio_max_error"] == 0
        engine.trainer.reduce()
        gradients.append(gradient(engine))
    assert torch.equal(*gradients)


def test_an_error_in_a_chunk_is_an_error_of_the_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(folder, chunk_rows=9)
    calls: list[Any] = []

    def failing(where: str) -> None:
        calls.append(where)
        if len(calls) == 2:
            raise RuntimeError("torn")

    monkeypatch.setattr(module, "fault_point", failing)
    with pytest.raises(RuntimeError, match="torn"):
        engine.forward_backward(caterpillar(10), GRPOLoss(GRPO()))
    with pytest.raises(EngineError, match="so the gradient is incomplete"):
        engine.step(GRPO())


def test_a_sample_longer_than_a_chunk_is_trained(wide: Decoder) -> None:
    long = Group([1, 2], [Sample([1, 2], [3, 4, 5, 6] * 10, advantage=1.0)])
    whole, _ = result(wide, Tree([long]), SFTLoss(SFT()), 1000)
    parts, _ = result(wide, Tree([long]), SFTLoss(SFT()), 8)
    assert float((parts - whole).abs().max()) <= 1e-9 * float(whole.abs().max())
