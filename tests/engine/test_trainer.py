"""Gradients and steps: shared rows run once, sums add up, and a step follows from the sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import proactor.engine.model as model_module
from proactor.engine import GRPO, SFT, AdamW, Engine, EngineError, Group, GRPOLoss, SFTLoss, Tree
from proactor.engine.packing import pack
from proactor.kernels.adamw import clip_by_norm
from tests.engine.engines import TRAIN, adapter, gradient, load, outside, prompts, rollout


def caterpillar() -> list[Group]:
    """A trunk of 30 tokens, three decision points, three samples each."""
    trunk = prompts(1, length=30)[0]
    out = []
    for i, cut in enumerate((9, 20, 30)):
        board = [7 + i, 8]
        samples = [
            outside(trunk[:cut] + board, [11 + i, 12 + j, 13, 14], advantage=j - 1.0) for j in range(3)
        ]
        out.append(Group(trunk[:cut] + board, samples, tree="dialogue"))
    return out


def test_every_row_enters_each_linear_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, forward, backward = load(folder), [], []
    plain = model_module.lora_linear

    def counted(x: Tensor, *rest: Any) -> Tensor:
        y = plain(x, *rest)
        forward.append(len(x))
        y.register_hook(lambda g: backward.append(len(g)))
        return y

    monkeypatch.setattr(model_module, "lora_linear", counted)
    groups = caterpillar()
    stats = engine.forward_backward(groups, GRPOLoss(GRPO()))
    tokens = (
        30 + 3 * 2 + 9 * 3
    )  # trunk, boards, samples without their last token, from which nothing is predicted
    assert Tree(groups).rows == stats["rows"] == tokens
    assert forward == backward == [tokens] * 8  # four products a layer, two layers
    assert stats["flat"] == sum(len(g.prompt_ids) + 3 for g in groups for _ in g.samples)


def test_a_tree_has_the_gradient_of_its_sequences(folder: Path) -> None:
    engine = load(folder)
    engine.forward_backward(caterpillar(), GRPOLoss(GRPO()))
    together = gradient(engine)
    engine.zero_grad()
    for group in caterpillar():
        for sample in group.samples:
            engine.forward_backward([Group(sample.prompt_ids, [sample])], GRPOLoss(GRPO()))
    apart = gradient(engine)
    assert float((together - apart).norm() / apart.norm()) < 1e-5
    small, whole = load(folder, token_budget=32), Tree(caterpillar()).rows
    by_turns = small.forward_backward(caterpillar(), GRPOLoss(GRPO()))["rows"]
    assert by_turns == whole < small.counters()["rows_computed"]
    assert float((gradient(small) - apart).norm() / apart.norm()) < 1e-5
    small.zero_grad()
    assert small.trainer is not None
    small.trainer.trees = lambda groups: pack(groups, 32)  # where cutting up costs less: halved until it fits
    assert small.forward_backward(caterpillar(), GRPOLoss(GRPO()))["rows"] > whole
    assert float((gradient(small) - apart).norm() / apart.norm()) < 1e-5


def test_step_is_adamw_on_the_mean_gradient(folder: Path) -> None:
    engine = load(folder)
    mine = torch.nn.Parameter(adapter(engine))
    peer = torch.optim.AdamW([mine], lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    config = AdamW(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, max_norm=None)
    for _ in range(4):
        groups = caterpillar()
        engine.forward_backward(groups, GRPOLoss(GRPO()))
        mine.grad = gradient(engine) / 36
        stats = engine.step(config)
        assert stats["normalizer"] == 36 and stats["grad_norm"] == pytest.approx(
            float(mine.grad.norm()), rel=1e-5
        )
        peer.step()
        assert torch.allclose(adapter(engine), mine.detach(), atol=1e-6)
        assert not gradient(engine).any()


def test_clipping(folder: Path) -> None:
    whole, clipped = load(folder), load(folder)
    norm = whole.train(caterpillar(), GRPO(lr=1e-2, max_norm=None))["grad_norm"]
    assert norm > 1e-3
    stats = clipped.train(caterpillar(), GRPO(lr=1e-2, max_norm=norm / 10))
    assert stats["grad_norm"] == pytest.approx(norm), "the norm before clipping is reported"
    assert whole.trainer is not None and clipped.trainer is not None
    assert torch.allclose(clipped.trainer.optimizer.m, whole.trainer.optimizer.m / 10, atol=1e-8)
    grad = torch.tensor([3.0, 4.0])
    assert clip_by_norm(grad, 10.0) == 5 and grad.tolist() == [3, 4]
    assert clip_by_norm(grad, 1.0) == 5 and grad.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(folder: Path, deterministic: bool) -> None:
    engine = load(folder, deterministic=deterministic)
    before, version = adapter(engine), engine.policy_version
    bad = caterpillar()
    bad[1].samples[0].policy_logprobs = [-1e4] * 4  # the ratio overflows, and no clip bounds A < 0
    stats = engine.train(bad, TRAIN)
    assert stats["nonfinite_gradient"] == 1 and stats["step"] == 0 and engine.counters()["skipped_steps"] == 1
    assert torch.equal(adapter(engine), before) and engine.policy_version == version
    clean = load(folder, deterministic=deterministic)
    stats, expected = engine.train(caterpillar(), TRAIN), clean.train(caterpillar(), TRAIN)
    assert stats["step"] == 1 and stats["grad_norm"] == expected["grad_norm"]
    assert torch.equal(adapter(engine), adapter(clean)), "nothing of the bad step is left"


def test_gradients_that_add_up_beyond_the_fixed_point_are_refused(folder: Path) -> None:
    """Each tree's would fit: integers would wrap around without a word."""
    engine = load(folder, deterministic=True)
    huge = caterpillar()
    for group in huge:
        for sample in group.samples:
            sample.advantage = 1e6
    with pytest.raises(EngineError, match=r"largest elements of this step's trees add up to \S+, above"):
        for _ in range(10_000):
            engine.forward_backward(huge, GRPOLoss(TRAIN))
    engine.zero_grad()
    assert engine.forward_backward(caterpillar(), GRPOLoss(TRAIN)), "nothing is left of it"


def test_a_loss_that_raises_leaves_nothing_behind(folder: Path) -> None:
    engine, clean = load(folder, token_budget=32), load(folder, token_budget=32)
    calls = 0

    def broken(logprobs: Tensor, batch: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError
        return logprobs.sum()

    others = [replace(group, tree="other") for group in caterpillar()]
    with pytest.raises(ZeroDivisionError):
        engine.forward_backward([*caterpillar(), *others], broken)  # in the second tree
    engine.train(caterpillar(), TRAIN)
    clean.train(caterpillar(), TRAIN)
    assert torch.equal(adapter(engine), adapter(clean))


def test_groups_without_spread_do_not_change_the_others(folder: Path) -> None:
    """They are left out of the forward, but their tokens stay in the divisor."""
    flat = caterpillar()
    for sample in flat[2].samples:
        sample.advantage = 0.0
    engine, forced = load(folder), load(folder)
    stats = engine.train(flat, GRPO(lr=1e-2, max_norm=None))
    assert stats["zero_spread_share"] == pytest.approx(1 / 3) and stats["normalizer"] == 36
    assert stats["tokens_trained"] == 24 and stats["tokens_computed"] == 20 + 4 + 18
    forced.forward_backward(flat, GRPOLoss(GRPO()))
    forced.step(AdamW(lr=1e-2, max_norm=None))
    assert engine.trainer is not None and forced.trainer is not None
    mine, other = engine.trainer.optimizer.m, forced.trainer.optimizer.m
    assert float((mine - other).norm() / other.norm()) < 1e-5


def test_epochs_and_minibatches_step_each(folder: Path) -> None:
    engine = load(folder)
    groups = rollout(engine, count=4)
    stats = engine.train(groups, GRPO(lr=3e-2, epochs=2, minibatches=2))
    assert stats["step"] == 4 and stats["tokens_trained"] == 2 * sum(
        len(s.token_ids) for g in groups for s in g.samples
    )
    assert stats["policy_version"] == 5
    assert stats["ratio_max_error"] <= 1e-5, "only the first of them is on policy, and only it is compared"


def test_sft_trains_the_unmasked_tokens(folder: Path) -> None:
    engine, other = load(folder), load(folder)
    ids = prompts(1, length=12)[0]
    mask = [True, False, False, True, True, False, True]
    sample = outside(ids[:5], ids[5:], mask=mask)

    def loss(logprobs: Tensor, batch: Any) -> Tensor:
        assert (batch.position + 5).tolist() == [5, 8, 9, 11]
        return -logprobs.sum()

    before = engine.nll([Group(ids[:5], [sample])])
    stats = engine.train([sample], SFT(lr=1e-2))
    other.forward_backward([Group(ids[:5], [sample])], loss)
    other.step(AdamW(lr=1e-2))
    assert stats["tokens_trained"] == 4 and stats["loss"] == pytest.approx(before, abs=1e-5)
    assert torch.equal(adapter(engine), adapter(other))
    changed = outside(ids[:5], [*ids[5:11], ids[11]], mask=mask)
    changed.token_ids[2] = (changed.token_ids[2] + 1) % 100  # a masked token is context, not target
    assert engine.nll([Group(ids[:5], [changed])]) != pytest.approx(engine.nll([Group(ids[:5], [sample])]))
    for _ in range(40):
        last = engine.train([sample], SFT(lr=3e-2))["loss"]
    assert last < before / 4
    unmasked = engine.logprobs([ids])[0][4:]
    assert (
        float(-unmasked[torch.tensor(mask)].mean())
        < before / 2
        < before - 1
        < float(-unmasked[~torch.tensor(mask)].mean())
    )


def test_samples_and_groups_mix_in_sft(folder: Path) -> None:
    engine = load(folder)
    ids = prompts(2, length=9)
    sample = outside(ids[0][:4], ids[0][4:])
    group = Group(ids[1][:4], [outside(ids[1][:4], ids[1][4:])])
    assert engine.train([sample, group], SFT())["tokens_trained"] == 5 + 8
    engine.forward_backward([group], SFTLoss(SFT()))
    assert engine.step()["normalizer"] == 8


def test_without_an_adapter_there_is_nothing_to_train(folder: Path) -> None:
    engine = Engine.load(folder, kv_tokens=256)
    groups = engine.sample(prompts(1), None)
    with pytest.raises(EngineError, match="no adapter to train"):
        engine.train([Group([1], [outside([1], [2], advantage=1.0)])], TRAIN)
    assert groups[0].samples[0].policy_version == 0
