"""What a method of one's own needs, done from outside: environments, credit by turn, extra forwards, losses,
optimizers. No engine code is touched.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from proactor.engine import (
    GRPO,
    AdamW,
    Engine,
    EngineError,
    Group,
    GRPOLoss,
    Sample,
    Sampling,
    TokenBatch,
    Tree,
)
from tests.engine.engines import TRAIN, adapter, drawn, gradient, load, prompts, reward

OBSERVATIONS = [[90, 91, 92], [93, 94], [95]]


def two_turns(engine: Engine, n: int = 3) -> Group:
    """Sample a first turn, show each sample its own observation, sample the second turn behind it."""
    [ids] = prompts(1)
    [group] = engine.sample([ids], Sampling(n=n, max_tokens=4, ignore_eos=True))
    for i, sample in enumerate(group.samples):
        sample.extend(OBSERVATIONS[i % 3])
    seconds = engine.sample(
        [s.prompt_ids + s.token_ids for s in group.samples], Sampling(max_tokens=3, ignore_eos=True)
    )
    for sample, second in zip(group.samples, seconds, strict=True):
        sample.append(second.samples[0])
    return group


@pytest.mark.parametrize("deterministic", [False, True])
def test_two_turn_environment(folder: Path, deterministic: bool) -> None:
    """Own tokens stay in the trunk, observations are context without loss, each turn has its advantage, and
    the ratio is one throughout.
    """
    engine = load(folder, deterministic=deterministic)
    group = two_turns(engine)
    for i, sample in enumerate(group.samples):
        gap = len(OBSERVATIONS[i % 3])
        assert sample.turns() == [(0, 4), (4 + gap, 7 + gap)]
        assert sample.token_ids[4 : 4 + gap] == OBSERVATIONS[i % 3] and len(sample.policy_logprobs) == 7 + gap
        sample.advantage = [1.0 + i, -2.0]
        assert sample.token_advantages() == [1.0 + i] * 4 + [0.0] * gap + [-2.0] * 3
    seen: list[TokenBatch] = []

    def watch(logprobs: Tensor, batch: TokenBatch) -> Tensor:
        seen.append(batch)
        return GRPOLoss(GRPO())(logprobs, batch)[0]

    engine.forward_backward([group], watch)
    engine.zero_grad()
    first = seen[0].sample == 0
    assert seen[0].advantage[first].tolist() == [1.0] * 4 + [-2.0] * 3
    assert seen[0].position[first].tolist() == [0, 1, 2, 3, 7, 8, 9]
    stats = engine.train([group], TRAIN)
    assert stats["tokens_trained"] == 21 and stats["ratio_max_error"] <= (0.0 if deterministic else 1e-5)


def test_the_first_turn_is_not_computed_again(folder: Path) -> None:
    engine = load(folder, page_size=1)
    before = engine.counters()
    group = two_turns(engine)
    fed = (
        10 + 3 * 3 + sum(1 + len(o) for o in OBSERVATIONS) + 3 * 2
    )  # prompt; turn 1; its last token and what was seen; turn 2
    assert engine.counters()["rows_computed"] - before["rows_computed"] == fed
    assert Tree([group]).rows == 10 + sum(7 + len(o) - 1 for o in OBSERVATIONS)


def test_append_refuses_what_does_not_continue(folder: Path) -> None:
    engine = load(folder)
    [ids] = prompts(1)
    first, other = (engine.sample([i], Sampling(max_tokens=2))[0].samples[0] for i in (ids, ids[1:]))
    with pytest.raises(EngineError, match="prompt is not this sample's prompt and tokens"):
        first.append(other)
    cold = engine.sample([first.prompt_ids + first.token_ids], Sampling(max_tokens=2, temperature=0.5))[
        0
    ].samples[0]
    with pytest.raises(EngineError, match=r"drawn at temperature 0\.5, this sample at 1\.0"):
        first.append(cold)
    engine.train(reward(engine.sample([ids], Sampling(n=2, max_tokens=2))), TRAIN)
    late = engine.sample([first.prompt_ids + first.token_ids], Sampling(max_tokens=2))[0].samples[0]
    version = first.policy_version
    first.append(late)
    assert first.policy_version == version < late.policy_version, "a sample is as old as its first turn"
    assert first.token_versions() == [version] * 2 + [late.policy_version] * 2


@pytest.mark.parametrize("deterministic", [False, True])
def test_groups_hang_off_samples(folder: Path, deterministic: bool) -> None:
    """A group behind another's sample shares its rows, and both have the gradient they have alone."""
    engine = load(folder, deterministic=deterministic)
    [ids] = prompts(1)
    draw = Sampling(n=3, max_tokens=5, ignore_eos=True)
    [root] = engine.sample([ids], draw)
    chosen = root.samples[1]
    tail = [90, 91]
    [child] = engine.sample([chosen.prompt_ids + chosen.token_ids + tail], draw)
    reward([root, child])
    root.tree = child.tree = "episode"
    for group in (root, child):
        for i, sample in enumerate(group.samples):
            sample.advantage = 1.0 - i

    def norm_of(groups: list[Group]) -> tuple[Tensor, float]:
        engine.zero_grad()
        stats = engine.forward_backward(groups, GRPOLoss(GRPO()))
        engine.reduce_gradients()
        assert stats["ratio_max_error"] <= (0.0 if deterministic else 1e-5)
        return gradient(engine), stats["rows"]

    apart, rows_apart = norm_of([root, child])
    child.parent = chosen
    shared, rows_shared = norm_of([root, child])
    assert rows_shared == 10 + (4 + 5 + 4) + 2 + 3 * 4 and rows_apart > rows_shared
    assert float((shared - apart).norm() / apart.norm()) < 1e-5
    assert engine.train([root, child], TRAIN)["ratio_max_error"] <= (0.0 if deterministic else 1e-5)
    with pytest.raises(EngineError, match="parent sample must stand earlier in the tree"):
        Tree([child])
    child.prompt_ids = [1, *child.prompt_ids]
    with pytest.raises(
        EngineError, match="parent sample must stand earlier in the tree and begin this group's prompt"
    ):
        Tree([root, child])


def test_extra_forward_on_edited_context(folder: Path) -> None:
    """Credit by what a change of the context does to the answer's log-probability, a token at a time."""
    engine = load(folder)
    groups = engine.sample(prompts(2), Sampling(n=2, max_tokens=5, ignore_eos=True))
    samples = [s for g in groups for s in g.samples]
    edited = [[1, 2, 3, *s.prompt_ids[3:], *s.token_ids] for s in samples]
    spans = [(len(s.prompt_ids), len(s.prompt_ids) + len(s.token_ids)) for s in samples]
    for sample, without in zip(samples, engine.logprobs(edited, spans), strict=True):
        credit = torch.tensor(sample.policy_logprobs) - without
        assert credit.shape == (5,) and float(credit.abs().max()) > 1e-3
        sample.advantage = credit.tolist()
    before = gradient(engine)
    assert not before.any(), "an extra forward leaves no gradient"
    stats = engine.train(groups, TRAIN)
    assert stats["tokens_trained"] == 20 and stats["grad_norm"] > 0 and stats["ratio_max_error"] <= 1e-5


def test_a_custom_advantage_is_taken_as_it_is(folder: Path) -> None:
    """Leave-one-out (RLOO), which is no group normalisation that the engine knows."""
    engine, other = load(folder), load(folder)
    groups = reward(engine.sample(prompts(2), Sampling(n=3, max_tokens=4)))
    for group in groups:
        total = sum(s.reward or 0.0 for s in group.samples)
        for sample in group.samples:
            assert sample.reward is not None
            sample.advantage = sample.reward - (total - sample.reward) / 2
    kept = [s.advantage for g in groups for s in g.samples]

    def rloo(logprobs: Tensor, batch: TokenBatch) -> Tensor:
        return -sum(
            logprobs[batch.sample == i].sum() * float(s.advantage) for i, s in enumerate(batch.samples)
        )  # type: ignore[arg-type,return-value]

    engine.train(groups, GRPO(lr=1e-2))
    other.forward_backward(groups, rloo)
    other.step(AdamW(lr=1e-2))
    assert [s.advantage for g in groups for s in g.samples] == kept
    assert torch.allclose(adapter(engine), adapter(other), atol=1e-5)


def test_a_sequence_level_loss(folder: Path) -> None:
    """GSPO-like: one ratio a sample, from sums over its tokens; on policy, the plain policy gradient."""
    engine, other = load(folder), load(folder)
    groups = reward(engine.sample(prompts(2), Sampling(n=3, max_tokens=4, ignore_eos=True)))
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = i - 1.0

    class Sequence:
        normalizer = "samples"

        def __call__(self, logprobs: Tensor, batch: TokenBatch) -> Tensor:
            count = len(batch.samples)
            lengths = torch.bincount(batch.sample, minlength=count)
            ratio = (torch.zeros(count).index_add(0, batch.sample, logprobs - batch.old) / lengths).exp()
            advantage = torch.tensor([float(s.advantage) for s in batch.samples])  # type: ignore[arg-type]
            return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()

    for e, loss in ((engine, Sequence()), (other, GRPOLoss(GRPO(normalizer="samples")))):
        e.forward_backward(groups, loss)
        assert e.reduce_gradients() == 6
    expected = gradient(other)
    assert (
        float(expected.norm()) > 0.1 and float((gradient(engine) - expected).norm() / expected.norm()) < 1e-5
    )


@pytest.mark.parametrize("to_none", [True, False])
def test_the_callers_own_optimizer(folder: Path, to_none: bool) -> None:
    """torch.optim.AdamW on `engine.parameters()` ends where `engine.step` does, with equal next samples."""
    engine, own = load(folder), load(folder)
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-2, weight_decay=0.01)
    losses = GRPOLoss(GRPO())
    for step in range(3):
        draw = Sampling(n=3, max_tokens=5, seed=step)
        for e in (engine, own):
            groups = e.sample(prompts(2), draw)
            for group in groups:
                for i, sample in enumerate(group.samples):
                    sample.advantage = i - 1.0
            e.forward_backward(groups, losses)
        engine.step(AdamW(lr=1e-2, weight_decay=0.01, max_norm=0.5))
        own.reduce_gradients()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        own.weights_changed()
        # a thousandth of a step of 1e-2: Adam divides gradients that nearly cancel by themselves
        assert torch.allclose(adapter(engine), adapter(own), atol=1e-5)
    assert engine.policy_version == own.policy_version
    last = Sampling(n=2, max_tokens=4, seed=9)
    assert [d[0] for d in drawn(engine.sample(prompts(2), last))] == [
        d[0] for d in drawn(own.sample(prompts(2), last))
    ]


def test_groups_from_outside(folder: Path) -> None:
    """Ids and log-probabilities that another sampler recorded; without them the ratio is one."""
    engine = load(folder)
    [ids] = prompts(1)
    known = [
        Sample(ids, [5, 6], logprobs=[-4.0, -5.0], policy_logprobs=[-4.5, -5.5], reward=r) for r in (0.0, 1.0)
    ]
    blank = [Sample(ids, [7, 8], reward=r) for r in (0.0, 1.0)]
    seen: list[TokenBatch] = []

    def watch(logprobs: Tensor, batch: TokenBatch) -> Tensor:
        seen.append(batch)
        return logprobs.sum()

    engine.forward_backward([Group(ids, known), Group(ids, blank)], watch)
    engine.zero_grad()
    old = {i: seen[0].old[seen[0].sample == i].tolist() for i in range(4)}
    by_tokens = {tuple(s.token_ids): old[i] for i, s in enumerate(seen[0].samples)}
    assert by_tokens[5, 6] == [-4.5, -5.5] and all(x != x for x in by_tokens[7, 8])
    assert engine.train([Group(ids, known), Group(ids, blank)], TRAIN)["ratio_max_error"] == 0
    with pytest.raises(EngineError, match="1 log-probabilities for 2 tokens"):
        engine.train([Group(ids, [Sample(ids, [5, 6], policy_logprobs=[-1.0], advantage=1.0)])], TRAIN)
