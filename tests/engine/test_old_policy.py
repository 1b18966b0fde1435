"""The old policy's log-probabilities computed by the trainer, and truncation against the sampler's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.engine import GRPO, Engine, Group, GRPOLoss
from proactor.engine.trainer import Trainer
from tests.engine.engines import adapter, gradient, load, outside, prompts

CAP = 1.1


def drawn(engine: Engine, shift: float = 0.25) -> list[Group]:
    """Groups whose sampler recorded other log-probabilities than the trainer computes, by ``shift`` or not at
    all, and which its policy drew.
    """
    groups = []
    for i, ids in enumerate(prompts(4, length=11)):
        samples = [outside(ids[:5], ids[5 : 8 + j], advantage=1.0 - 2 * j) for j in range(2)]
        for j, sample in enumerate(samples):
            whole = sample.prompt_ids + sample.token_ids
            [true] = engine.logprobs([whole], [(5, len(whole))])
            sample.policy_logprobs = (true - shift * ((i + j) % 2)).tolist()
            sample.logprobs = list(sample.policy_logprobs)
            sample.policy_version = engine.policy_version
        groups.append(Group(ids[:5], samples))
    return groups


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each update was given old log-probabilities of."""
    seen: list[int] = []
    plain = Trainer.forward_backward

    def noted(self: Trainer, groups: object, loss: object, *rest: object) -> object:
        seen.append(-1 if rest[2] is None else len(rest[2]))  # type: ignore[arg-type]
        return plain(self, groups, loss, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "forward_backward", noted)
    return seen


def test_one_update_needs_no_pass_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is 1, each token weighs exp(trainer - sampler), at most the cap; the gap is still told."""
    engine, by_hand, seen = load(folder), load(folder), passes(monkeypatch)
    groups, before = drawn(engine), engine.decoder.rows_computed
    config = GRPO(lr=1e-2, old_policy="recomputed", importance_cap=CAP, max_norm=None)
    stats = engine.train(groups, config)
    assert seen == [0] and engine.decoder.rows_computed - before == stats["tokens_computed"]
    assert stats["clip_share"] == 0 and stats["sampler_trainer_gap"] == pytest.approx(0.125, rel=0.2)
    assert stats["capped_share"] == pytest.approx(0.5, abs=0.1)
    for i, group in enumerate(groups):
        for j, sample in enumerate(group.samples):
            sample.policy_logprobs, sample.logprobs = [], []
            sample.weight = CAP if (i + j) % 2 else 1.0
    by_hand.train(groups, GRPO(lr=1e-2, max_norm=None))
    assert by_hand.trainer is not None and engine.trainer is not None
    mine, expected = engine.trainer.optimizer.m, by_hand.trainer.optimizer.m
    assert float((mine - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("deterministic", [False, True])
def test_later_updates_compare_with_the_policy_before_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """With log-probabilities recorded exactly, recorded and recomputed are the same run; with wrong ones the
    recomputed run does not see them.
    """
    seen, ends = passes(monkeypatch), {}
    for old, shift in (("recorded", 0.0), ("recomputed", 0.0), ("recomputed", 0.25), ("recorded", 0.25)):
        engine = load(folder, deterministic=deterministic)
        engine.train(drawn(engine, shift), GRPO(lr=3e-2, epochs=2, minibatches=2, old_policy=old))
        ends[old, shift] = adapter(engine)
    assert seen == [-1] * 4 + [8] * 8 + [-1] * 4
    first = ends["recorded", 0.0]
    moved = float((first - adapter(load(folder))).abs().max())
    for key in (("recomputed", 0.0), ("recomputed", 0.25)):
        assert float((ends[key] - first).abs().max()) < 1e-2 * moved, key
    assert float((ends["recorded", 0.25] - first).abs().max()) > 0.1 * moved


def test_recorded_log_probabilities_keep_their_meaning(folder: Path) -> None:
    """Without the option the weight is that of filters alone: policy against sampled."""
    engine = load(folder)
    groups = drawn(engine)
    engine.forward_backward(groups, GRPOLoss(GRPO(importance_cap=CAP)))
    capped = gradient(engine)
    engine.zero_grad()
    engine.forward_backward(groups, GRPOLoss(GRPO()))
    assert torch.equal(capped, gradient(engine))
