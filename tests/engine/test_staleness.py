"""Samples in flight that go on through an update: their KV is computed again, each token names its policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.engine import Engine, Group, Sample, Sampling
from tests.engine.engines import TRAIN, drawn, idle, load, prompts, reward
from tests.engine.sessions import Updates, trainable

LENGTH = 12


def sample(engine: Engine, at: set[int], n: int = 1) -> list[Sample]:
    updates = Updates(engine, at)
    sampling = Sampling(n=n, max_tokens=LENGTH, ignore_eos=True, logit_mask=updates)
    [group] = engine.sample(prompts(1), sampling)
    for trained in updates.trained:
        trained.result(60)
    return group.samples


def gaps(engine: Engine, one: Sample) -> torch.Tensor:
    """How far each recorded log-probability is from that under the present weights."""
    start, ids = len(one.prompt_ids), one.prompt_ids + one.token_ids
    return (engine.logprobs([ids], [(start, len(ids))])[0] - torch.tensor(one.policy_logprobs)).abs()


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_sample_goes_on_under_the_new_weights(folder: Path, deterministic: bool) -> None:
    engine = load(folder, max_staleness=1, deterministic=deterministic)
    old = load(folder, deterministic=deterministic)
    began = engine.policy_version
    samples = sample(engine, {5}, n=3)
    assert engine.policy_version == began + 1 and idle(engine)
    mixed = 0
    for one in samples:
        before = one.token_versions().count(began)
        assert one.policy_version == began
        assert one.token_versions() == [began] * before + [began + 1] * (LENGTH - before)
        mixed += 0 < before < LENGTH
        bound = 0.0 if deterministic else 1e-4
        assert gaps(engine, one)[before:].max() <= bound < gaps(engine, one)[:before].max()
        assert gaps(old, one)[:before].max() <= bound < gaps(old, one)[before:].max()
    assert mixed == 3
    assert engine.counters()["preemptions"] == 0 < engine.counters()["tokens_recomputed"]
    stats = engine.train(reward([Group(samples[0].prompt_ids, samples)]), TRAIN)
    assert stats["ratio_max_error"] < 1e-4, "only tokens of the present weights are compared"


def test_an_update_waits_for_samples_that_have_seen_enough(folder: Path) -> None:
    engine = load(folder, max_staleness=1)
    began = engine.policy_version
    [one] = sample(engine, {3, 6})
    assert engine.policy_version == began + 2
    assert one.token_versions() == [began] * 4 + [began + 1] * (LENGTH - 4), "the second update waited"


def test_without_staleness_every_update_waits(folder: Path) -> None:
    engine = load(folder)
    began = engine.policy_version
    [one] = sample(engine, {3, 6})
    assert engine.policy_version == began + 2 and one.versions is None and one.policy_version == began


def test_an_update_that_changes_nothing_leaves_samples_alone(folder: Path) -> None:
    """A dropped gradient makes no new version; the tokens are those of an undisturbed call."""
    engine, other = load(folder, max_staleness=3, deterministic=True), load(folder, deterministic=True)
    for group in (flat := trainable())[0].samples:
        group.advantage = 0.0
    updates = Updates(engine, {4})
    train = engine.train
    engine.train = lambda groups, config: train(flat, config)  # type: ignore[method-assign]
    sampling = Sampling(n=2, max_tokens=LENGTH, ignore_eos=True)
    groups = engine.sample(prompts(1), sampling.model_copy(update={"logit_mask": updates}))
    assert updates.trained[0].result(60)["zero_gradient"] == 1
    assert drawn(groups) == drawn(other.sample(prompts(1), sampling))
    assert all(one.versions is None for one in groups[0].samples)


def test_a_request_that_has_not_begun_gets_the_new_version(folder: Path) -> None:
    engine = load(folder, max_staleness=2, max_batch=1)
    began = engine.policy_version
    updates = Updates(engine, {2})
    sampling = Sampling(max_tokens=6, ignore_eos=True)
    first, second = engine.sample(prompts(2), [sampling.model_copy(update={"logit_mask": updates}), sampling])
    [waited] = second.samples
    assert (waited.policy_version, waited.versions) == (began + 1, None)
    assert gaps(engine, waited).max() < 1e-4
    assert first.samples[0].token_versions() == [began] * 3 + [began + 1] * 3
