"""GRPO's relatives against their formulas, token by token in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, EngineError, Group, GRPOLoss, Sample
from proactor.engine.layout import TokenBatch, layout
from proactor.engine.policy_terms import policy_terms
from proactor.engine.tree import Tree
from tests.engine.engines import gradient, load, outside, prompts

LOW, HIGH, BETA = 0.2, 0.3, 0.1
NORMAL = {"epsilon": LOW, "epsilon_high": HIGH}
OLD = [[-1.0, -2.0, -0.5], [-0.7, -1.2], [-3.0]]
NEW = [[-0.4, -2.4, -0.5], [-0.9, -0.6], [-2.2]]
REFERENCE = [[-0.8, -2.0, -0.9], [-1.0, -0.5], [-2.0]]
ADVANTAGES = [1.0, -0.5, 2.0]


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def batch(reference: bool) -> TokenBatch:
    samples = [
        Sample([1], [3] * len(old), policy_logprobs=old, logprobs=[x + 0.5 for x in old], advantage=a)
        for old, a in zip(OLD, ADVANTAGES, strict=True)
    ]
    made = layout(Tree([Group([1], samples)])).batch
    made.old, made.advantage = torch.tensor(flat(OLD), dtype=torch.float64), made.advantage.double()
    made.sampled = made.old + 0.5
    made.reference = torch.tensor(flat(REFERENCE), dtype=torch.float64) if reference else None
    return made


def clipped(ratio: float) -> float:
    return min(max(ratio, 1 - LOW), 1 + HIGH)


def terms(config: GRPO) -> Tensor:
    """d loss / d new by the formulas' derivatives, token by token."""
    out = []
    for new, old, reference, a in zip(NEW, OLD, REFERENCE, ADVANTAGES, strict=True):
        mean = sum(n - o for n, o in zip(new, old, strict=True)) / len(new)
        for n, o, r in zip(new, old, reference, strict=True):
            ratio = math.exp(mean if config.ratio == "sequence" else n - o)
            if config.clip == "cispo":
                slope = -clipped(ratio) * a
            else:  # in a sequence each of its tokens moves every term by its share: the same slope for all
                slope = 0.0 if clipped(ratio) * a < ratio * a else -ratio * a
            d = r - n
            slope += config.beta * {"k1": 1.0, "k2": -d, "k3": 1 - math.exp(d)}[config.kl]
            out.append(slope)
    return torch.tensor(out, dtype=torch.float64)


FORMS = {
    "token": GRPO(**NORMAL),
    "sequence": GRPO(ratio="sequence", **NORMAL),
    "cispo": GRPO(clip="cispo", **NORMAL),
    "sequence cispo": GRPO(ratio="sequence", clip="cispo", **NORMAL),
    "k1": GRPO(beta=BETA, kl="k1", **NORMAL),
    "k2": GRPO(beta=BETA, kl="k2", **NORMAL),
    "k3": GRPO(beta=BETA, kl="k3", **NORMAL),
    "k3 of sequences": GRPO(beta=BETA, ratio="sequence", **NORMAL),
}


@pytest.mark.parametrize("name", FORMS)
def test_slopes_are_the_formulas(name: str) -> None:
    config = FORMS[name]
    new = torch.tensor(flat(NEW), dtype=torch.float64, requires_grad=True)
    loss, statistics = GRPOLoss(config)(new, batch(reference=config.beta > 0))
    (slope,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(slope, terms(config), rtol=1e-12, atol=1e-12)
    assert ("kl" in statistics) == (config.beta > 0)


def test_a_ratio_that_overflows_has_no_gradient_where_the_clip_binds() -> None:
    new = torch.tensor([-1.0, -1.0], requires_grad=True)
    change = new - torch.tensor([-100.0, -1.0])
    loss, statistics = policy_terms(
        new, change, torch.ones(2), torch.ones(2), None, 0.2, 0.2, 0.0, clip="ppo", kl="k3"
    )
    (slope,) = torch.autograd.grad(loss.sum(), new)
    assert slope.tolist() == [0.0, -1.0] and float(statistics[1]) == 1


def test_a_sequence_term_is_gspos() -> None:
    """With tokens weighing as their share, the sum is that of min(s A, clip(s) A) over sequences."""
    made = batch(reference=False)
    lengths = torch.bincount(made.sample)
    made.weight = 1.0 / lengths[made.sample].double()
    new = torch.tensor(flat(NEW), dtype=torch.float64)
    loss, statistics = GRPOLoss(FORMS["sequence"])(new, made)
    expected = 0.0
    for n, o, a in zip(NEW, OLD, ADVANTAGES, strict=True):
        s = math.exp(sum(x - y for x, y in zip(n, o, strict=True)) / len(n))
        expected -= min(s * a, clipped(s) * a)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert float(statistics["clip_share"]) == 1, "the last sequence's ratio exp(0.8) is above 1.3"


@pytest.mark.parametrize(("kind", "weight"), [("truncated", 0.5), ("masked", 0.0)])
def test_importance_beyond_the_cap(kind: str, weight: float) -> None:
    """exp(old - sampled) is exp(-0.5) = 0.61 everywhere."""
    new = torch.tensor(flat(NEW), dtype=torch.float64, requires_grad=True)
    capped, whole = (
        torch.autograd.grad(GRPOLoss(c)(new, batch(False))[0], new)[0]
        for c in (GRPO(importance_cap=0.5, importance=kind, **NORMAL), GRPO(**NORMAL))
    )
    torch.testing.assert_close(capped, whole * weight)


@pytest.mark.parametrize("changes", [{"ratio": "sequence", "normalizer": "samples"}, {"clip": "cispo"}])
def test_in_chunks_as_in_one_pass(folder: Path, changes: dict[str, str]) -> None:
    """Sequence ratios couple the tokens of a sample that lies in several chunks."""
    prompt = prompts(1, length=12)[0]
    samples = [
        outside(prompt, [5 + i + j for j in range(9)], advantage=i - 0.5, policy_logprobs=[-4.0] * 9)
        for i in range(3)
    ]
    found = []
    for rows in (None, 5):
        engine = load(folder, chunk_rows=rows)
        engine.forward_backward([Group(prompt, samples)], GRPOLoss(GRPO(**changes)))
        found.append(gradient(engine))
    assert torch.allclose(*found, rtol=0, atol=1e-4 * float(found[0].abs().max()))
    assert float(found[0].abs().max()) > 0


def test_an_unknown_form_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"GRPO: .*ratio"):
        load(folder).train([], GRPO(ratio="word"))  # type: ignore[arg-type]
