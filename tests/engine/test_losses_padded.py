"""Every loss on a token tree, under any cut, has the gradient of separate padded sequences (float64)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from proactor.engine import GRPO, Group, Sample, Tree
from proactor.engine.model import Decoder
from proactor.engine.tree import ROOT
from proactor.engine.tree_gradient import OldPolicy, backward
from tests.engine.engines import load
from tests.engine.losses import CONFIGS, couple, loss_of
from tests.engine.padded import Scored, gradient_of, loss_by_hand, scored
from tests.engine.trees import caterpillar, groups, long_tokens, widened

TOLERANCE = 1e-9
WHOLE = 10**6


@pytest.fixture(scope="module")
def wide(folder: Path) -> Decoder:
    """Layers of attention with grouped heads, in float64."""
    return widened(load(folder))


def trained(several: list[Group]) -> list[Group]:
    """Advantages, weights and recorded log-probabilities off policy, different for each token."""
    at = 0
    for group in several:
        for i, sample in enumerate(group.samples):
            count = len(sample.token_ids)
            sample.advantage = [(i % 3 - 1) * 0.7 + 0.1 * (j % 4) for j in range(count)]
            sample.weight = [0.5 + 0.25 * ((at + j) % 5) for j in range(count)]
            sample.policy_logprobs = [-4.6 - 0.3 * ((at + j) % 5 - 2) for j in range(count)]
            sample.logprobs = [p + 0.15 * ((at + j) % 3 - 1) for j, p in enumerate(sample.policy_logprobs)]
            at += count
    return several


def deep() -> list[Group]:
    """Six nodes deep, some of one token; sampled spans with several branches; masks, turns, temperatures."""
    made: list[Group] = []
    parent: Sample | None = None
    prompt = [7, 8]
    for level in range(6):
        tokens = [[11 + level, 3, 60, 5 + level][: 1 + level % 4], [20 + level], [30, 31 + level, 9, 40, 41]]
        samples = [Sample(prompt, ids, temperature=(1.0, 0.7)[i % 2]) for i, ids in enumerate(tokens)]
        samples[2].mask = [True, False, True, True, False]
        made.append(Group(prompt, samples, tree="deep", parent=parent))
        parent = samples[0]
        if level % 2:  # a second group of branches on the same span, after an observation
            longer = parent.prompt_ids + parent.token_ids + [90]
            branches = [Sample(longer, [50 + level, 51]), Sample(longer, [50 + level, 52, 53])]
            made.append(Group(longer, branches, tree="deep", parent=parent))
        prompt = parent.prompt_ids + parent.token_ids
    return trained(made)


SHAPES = {
    "deep": (deep, (WHOLE, 4, 11)),
    "caterpillar of 50": (lambda: trained(caterpillar(50)), (WHOLE, 60)),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, wide: Decoder) -> tuple[Tree, list[Scored], tuple[int, ...]]:
    """A tree, its samples scored apart, and the cuts to try."""
    make, cuts = SHAPES[request.param]
    several = make()
    tree = Tree(several)
    depths = [0] * len(tree.nodes)
    for i in tree.order():
        above = tree.nodes[i].parent
        depths[i] = 1 + (0 if above == ROOT else depths[above])
    assert max(depths) >= 6 and min(len(n.ids) for n in tree.nodes) == 1
    return tree, scored(wide, several), cuts


def found(wide: Decoder, tree: Tree, name: str, most: int) -> tuple[Tensor, float]:
    """(gradient, sum) of a loss over a tree in chunks of ``most`` rows."""
    assert wide.lora is not None
    config = CONFIGS[name]
    old: OldPolicy | None = {} if isinstance(config, GRPO) and config.old_policy == "recomputed" else None
    wide.lora.attach_grad()
    wide.lora.grad.zero_()
    done = backward(wide, tree, loss_of(config), most, old)
    assert not done.batch.entropy.requires_grad
    return wide.lora.grad.clone(), done.value


def agrees(mine: Tensor, expected: Tensor) -> bool:
    return float((mine - expected).abs().max()) <= TOLERANCE * max(1e-3, float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tree_has_the_gradient_of_padded_sequences(
    wide: Decoder, shape: tuple[Tree, list[Scored], tuple[int, ...]], name: str
) -> None:
    tree, apart, cuts = shape
    by_hand = loss_by_hand(CONFIGS[name], apart)
    expected = gradient_of(wide, by_hand)
    assert float(expected.abs().max()) > 1e-2
    for most in cuts:
        gradient, value = found(wide, tree, name, most)
        assert agrees(gradient, expected), most
        assert value == pytest.approx(float(by_hand), rel=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_trees(wide: Decoder, name: str) -> None:
    @settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.too_slow])
    @given(groups(long_tokens), st.integers(4, 50))
    def check(several: list[Group], most: int) -> None:
        if all(group.masked for group in several):
            return
        expected = gradient_of(wide, loss_by_hand(CONFIGS[name], scored(wide, trained(several))))
        for rows in (WHOLE, most):
            assert agrees(found(wide, Tree(several), name, rows)[0], expected)

    check()


@pytest.mark.parametrize("most", [WHOLE, 4, 11])
def test_an_own_loss_may_couple_tokens_and_entropies(wide: Decoder, most: int) -> None:
    several = deep()
    apart = scored(wide, several)
    weights = [torch.tensor(x.sample.token_weights())[torch.tensor(x.sample.trained_mask())] for x in apart]
    total = torch.stack([x.new.sum() ** 2 / 100 for x in apart]).sum()
    total = (
        total
        + torch.stack([(x.entropy**2 * w).sum() for x, w in zip(apart, weights, strict=True)]).sum() / 10
    )
    assert wide.lora is not None
    wide.lora.attach_grad()
    wide.lora.grad.zero_()
    done = backward(wide, Tree(several), couple, most)
    assert agrees(wide.lora.grad, gradient_of(wide, total))
    assert float(done.statistics["longest"]) == pytest.approx(-sum(float(x.new.sum()) for x in apart))


def test_an_old_policy_of_the_trainers_own_takes_the_place_of_the_recorded_one(wide: Decoder) -> None:
    """A sample that it does not name is compared with the present policy."""
    several = trained(caterpillar(4))
    config = GRPO(old_policy="recomputed", importance_cap=1.1)
    apart = scored(wide, several)
    old = {id(x.sample): x.new.detach() - 0.3 * (-1) ** i for i, x in enumerate(apart)}
    del old[id(apart[1].sample)]
    assert wide.lora is not None
    wide.lora.attach_grad()
    wide.lora.grad.zero_()
    done = backward(wide, Tree(several), loss_of(config), 9, old)
    recorded = [p for x in apart for p in x.sample.policy_logprobs]
    assert done.batch.recorded is not None and done.batch.recorded.tolist() == pytest.approx(recorded)
    total = torch.zeros((), dtype=torch.float64)
    for x in apart:
        ratio = (x.new - old.get(id(x.sample), x.new.detach())).exp()
        shift = (old.get(id(x.sample), x.new.detach()) - torch.tensor(x.sample.logprobs)).exp()
        a = torch.tensor(x.sample.token_advantages())
        weight = torch.tensor(x.sample.token_weights()) * shift.clamp(max=1.1)
        total = total - (torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * weight).sum()
    assert agrees(wide.lora.grad, gradient_of(wide, total))
