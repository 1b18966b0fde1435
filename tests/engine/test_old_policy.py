"""The old policy's log-probabilities computed by the trainer, and truncation against the sampler's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, Engine, Group, GRPOLoss
from proactor.engine.config import AUTO_CAP, LARGE_GAP
from proactor.engine.trainer import Trainer
from tests.engine.engines import adapter, gradient, load, outside, prompts

CAP = 1.1
Row = dict[str, float]


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
    config = GRPO(lr=3e-2, epochs=2, minibatches=2, importance_cap=None)
    for old, shift in (("recorded", 0.0), ("recomputed", 0.0), ("recomputed", 0.25), ("recorded", 0.25)):
        engine = load(folder, deterministic=deterministic)
        engine.train(drawn(engine, shift), config.model_copy(update={"old_policy": old}))
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


def beside(config: GRPO, folder: Path, shift: float, deterministic: bool = False) -> tuple[Tensor, Row]:
    """(adapter, statistics) after a call of `Engine.train` on `drawn`."""
    engine = load(folder, deterministic=deterministic)
    stats = engine.train(drawn(engine, shift), config)
    return adapter(engine), stats


@pytest.mark.parametrize("parts", [1, 2])
def test_without_a_gap_the_automatic_cap_changes_no_bit(folder: Path, parts: int) -> None:
    config = GRPO(lr=3e-2, epochs=parts, minibatches=parts)
    found, stats = beside(config, folder, 0.0, deterministic=True)
    plain, before = beside(config.model_copy(update={"importance_cap": None}), folder, 0.0, True)
    assert torch.equal(found, plain) and stats["sampler_trainer_gap"] == 0
    assert stats["importance_cap"] == (AUTO_CAP if parts == 1 else 0) and before["importance_cap"] == 0


def test_a_gap_is_corrected_in_every_update_of_the_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cap of 2 on recomputed log-probabilities gives, whatever the number of updates; the first of
    several takes no pass of its own.
    """
    far = math.log(2 * AUTO_CAP)
    for parts in (1, 2):
        config = GRPO(lr=3e-2, epochs=parts, minibatches=parts)
        seen = passes(monkeypatch)
        found, stats = beside(config, folder, far)
        assert seen == [0] if parts == 1 else seen[0] == 0 and seen[1:] == [8] * 3
        assert stats["importance_cap"] == AUTO_CAP and stats["capped_share"] == pytest.approx(0.5, abs=0.1)
        by_hand = config.model_copy(update={"importance_cap": AUTO_CAP, "old_policy": "recomputed"})
        expected, _ = beside(by_hand, folder, far)
        start = adapter(load(folder))
        assert float((found - expected).abs().max()) < 1e-2 * float((expected - start).abs().max())
        left_out, _ = beside(config.model_copy(update={"importance_cap": None}), folder, far)
        assert float((left_out - expected).abs().max()) > 0.1 * float((expected - start).abs().max())


def test_a_small_gap_leaves_later_updates_to_what_was_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, config = passes(monkeypatch), GRPO(lr=3e-2, minibatches=2)
    for shift, later, cap in ((LARGE_GAP * 1.5, -1, 0.0), (LARGE_GAP * 3, 4, AUTO_CAP)):
        seen.clear()  # half of the samples are off by the shift
        _, stats = beside(config, folder, shift)
        assert seen == [0, later] and stats["importance_cap"] == cap


def go_on(engine: Engine) -> None:
    """A version of the policy later."""
    before = engine.policy_version
    engine.train([Group([1, 2], [outside([1, 2], [3], advantage=1.0)])], GRPO(lr=1e-4))
    assert engine.policy_version == before + 1


def test_tokens_of_an_earlier_policy_compare_with_what_it_recorded(folder: Path) -> None:
    """The automatic cap corrects no distance between policies, which the ratio's clip bounds."""
    results = []
    for cap in ("auto", None):
        engine = load(folder, deterministic=True)
        groups = drawn(engine, 0.5)
        go_on(engine)
        stats = engine.train(groups, GRPO(lr=3e-2, importance_cap=cap))
        results.append((adapter(engine), stats["clip_share"]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1] > 0


def test_of_a_sample_of_two_policies_each_token_has_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first token was drawn by an earlier policy: in no update it compares with the trainer's."""
    engine, seen = load(folder), list[dict[int, Tensor]]()
    earlier = engine.policy_version
    go_on(engine)
    groups = drawn(engine, 0.5)
    mixed = groups[0].samples[1]
    mixed.versions = [earlier] + [engine.policy_version] * (len(mixed.token_ids) - 1)
    whole = mixed.prompt_ids + mixed.token_ids
    [true] = engine.logprobs([whole], [(5, len(whole))])
    plain = Trainer.forward_backward

    def noted(self: Trainer, several: object, loss: object, *rest: object) -> object:
        seen.append(dict(rest[2]))  # type: ignore[call-overload]
        return plain(self, several, loss, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "forward_backward", noted)
    engine.train(groups, GRPO(lr=1e-3, epochs=2))
    first, second = (old[id(mixed)] for old in seen)
    assert list(seen[0]) == [id(mixed)] and len(seen[1]) == 8
    assert first[0] == second[0] == pytest.approx(mixed.policy_logprobs[0])
    assert first[1:].isnan().all() and torch.allclose(second[1:], true[1:], atol=1e-5)
