"""Sums over calls, minibatches and groups without a gradient: one gradient, one loss, and no step by momentum
alone. References in float64. Ranks are in test_parallel.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, SFT, AdamW, Engine, EngineError, Group, GRPOLoss, LoRA, Sample, SFTLoss
from tests.engine.engines import TRAIN, adapter, gradient, load, outside, prompts
from tests.engine.peers import (
    engine_gradients,
    grpo_by_hand,
    largest_error,
    padded_logprobs,
    peft_gradients,
    with_adapter,
)

STILL = 1e-30
"""A learning rate that moves no float32 weight, so that several steps see one policy."""
NORMALIZERS = ("tokens", "samples", "constant")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder)


@pytest.fixture(scope="module")
def peer(engine: Engine, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The engine's model and adapter in transformers and PEFT, float64."""
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    engine.save_adapter(path)
    return with_adapter(folder, path, dtype=torch.float64)


def groups(engine: Engine, count: int = 3) -> list[Group]:
    """Groups of unlike lengths, off policy, with a masked sample in the first and no spread in the last."""
    out = []
    for i, ids in enumerate(prompts(count, length=14)):
        samples = [outside(ids[:5], ids[5 : 8 + 2 * j], advantage=(-1.0) ** j + i) for j in range(3)]
        out.append(Group(ids[:5], samples))
    out[0].samples[1].mask = [False] * len(out[0].samples[1].token_ids)
    out[1].samples[2].mask = [t % 2 == 0 for t in range(len(out[1].samples[2].token_ids))]
    for sample in (s for g in out for s in g.samples):
        span = (5, 5 + len(sample.token_ids))
        recorded = engine.logprobs([sample.prompt_ids + sample.token_ids], [span])[0]
        sample.policy_logprobs = (recorded - 0.05 * torch.arange(len(recorded))).tolist()
    for sample in out[-1].samples:
        sample.advantage = 0.0
    return out


def masked_group() -> Group:
    """A group of which no token is trained."""
    return Group([1, 2], [Sample([1, 2], [3, 4], mask=[False, False], advantage=1.0) for _ in range(2)])


def config(normalizer: Any, **changes: Any) -> GRPO:
    return GRPO(lr=STILL, normalizer=normalizer, constant=16.0, max_norm=None, **changes)


# -- one divisor ---


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_calls_add_up_to_one_gradient(engine: Engine, peer: Any, normalizer: str, calls: int) -> None:
    data, loss = groups(engine), GRPOLoss(config(normalizer))
    engine.zero_grad()
    for i in range(calls):
        engine.forward_backward(data[i::calls], loss)
    divisor = engine.reduce_gradients()
    assert divisor == {"tokens": 37, "samples": 8, "constant": 16}[normalizer]
    gradients = engine_gradients(engine)
    engine.zero_grad()
    expected = peft_gradients(peer, grpo_by_hand(peer, data, config(normalizer)))
    assert largest_error(gradients, expected) < 1e-4


@pytest.mark.parametrize("minibatches", [1, 2, 5])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_logged_loss_has_the_divisor_of_the_gradient(
    engine: Engine, peer: Any, normalizer: str, minibatches: int
) -> None:
    data = groups(engine)
    with torch.no_grad():
        expected = float(grpo_by_hand(peer, data, config(normalizer)))
    if normalizer == "constant":
        expected /= minibatches  # the mean over steps, each of which is divided by the constant
    stats = engine.train([*data, masked_group()], config(normalizer, minibatches=minibatches))
    assert stats["loss"] == pytest.approx(expected, rel=1e-4)
    assert stats["masked_groups"] == 1 and stats["zero_spread_share"] == 1 / 4


def test_sft_reports_the_mean_over_samples(engine: Engine, peer: Any) -> None:
    data = [Group([1], [Sample([1], [5])]), Group([2], [Sample([2], list(range(3, 100)))])]
    with torch.no_grad():
        means = [-float(x.mean()) for x in padded_logprobs(peer, [[1, 5], [2, *range(3, 100)]])]
    loss = engine.train(data, SFT(lr=STILL, normalizer="samples"))["loss"]
    assert loss == pytest.approx(sum(means) / 2, rel=1e-5)
    loss = engine.train(data, SFT(lr=STILL, normalizer="constant", constant=7.0))
    assert loss["loss"] == pytest.approx((means[0] + 97 * means[1]) / 7, rel=1e-5)
    assert loss["normalizer"] == 7


def test_one_gradient_has_one_normalizer(engine: Engine) -> None:
    data = groups(engine)
    engine.forward_backward(data[:1], GRPOLoss(config("constant")))
    for other in (SFTLoss(SFT()), GRPOLoss(GRPO(normalizer="constant", constant=4.0))):
        with pytest.raises(
            EngineError, match=r"^loss.normalizer: .* accumulated so far has 16.0: step or zero"
        ):
            engine.forward_backward(data[1:], other)
    assert engine.reduce_gradients() == 16
    engine.zero_grad()

    def loss(logprobs: Tensor, batch: object) -> Tensor:
        return -logprobs.sum()

    for name in ("token", 0, -1.0, True, float("nan"), float("inf"), None):
        loss.normalizer = name  # type: ignore[attr-defined]
        with pytest.raises(
            EngineError, match=r"^loss.normalizer: .* is not 'tokens', 'samples', 'turns' or a"
        ):
            engine.forward_backward(data, loss)
    assert not gradient(engine).any()


# -- no gradient, no step ---


def flat(data: list[Group]) -> list[Group]:
    for sample in (s for g in data for s in g.samples):
        sample.advantage = 0.0
    return data


@pytest.mark.parametrize("forced", [False, True])
def test_a_batch_without_gradient_moves_nothing(folder: Path, forced: bool) -> None:
    engine = load(folder)
    engine.train(groups(engine), TRAIN)  # now there is momentum
    before = engine.state_dict()
    if forced:
        engine.forward_backward(flat(groups(engine)), GRPOLoss(TRAIN))
        stats = engine.step(AdamW(lr=1e-2, weight_decay=0.1))
    else:
        stats = engine.train(flat(groups(engine)), GRPO(lr=1e-2, weight_decay=0.1))
    assert stats["zero_gradient"] == 1 and stats["nonfinite_gradient"] == stats["grad_norm"] == 0
    after = engine.state_dict()
    assert after.pop("empty_steps") == before.pop("empty_steps") + 1 == engine.counters()["empty_steps"] == 1
    for name, value in before.items():
        same = torch.equal(after[name], value) if isinstance(value, Tensor) else after[name] == value
        assert same, name


def test_an_empty_minibatch_is_no_step(folder: Path) -> None:
    engine, two = load(folder), load(folder)
    data = groups(engine)  # three groups, one of them without spread
    stats = engine.train(data, GRPO(lr=1e-2, minibatches=8))
    assert stats["step"] == 2 and stats["zero_gradient"] == 6 and stats["grad_norm"] > 0
    order = [g for part in _order(two, data) for g in part]
    for group in order:
        two.train([group], GRPO(lr=1e-2))
    assert torch.equal(adapter(engine), adapter(two))


def _order(engine: Engine, data: list[Group]) -> list[list[Group]]:
    from proactor.engine.update import deal

    return [part for part, _ in deal(data, GRPO(minibatches=8), engine.parallel) if part]


def test_every_step_that_was_dropped_is_counted(folder: Path) -> None:
    engine = load(folder)
    data = groups(engine)[:2]
    for sample in data[0].samples:
        sample.advantage, sample.policy_logprobs = -1.0, [-1e4] * len(sample.token_ids)
    stats = engine.train(data, GRPO(lr=1e-2, minibatches=2, epochs=2))
    assert stats["nonfinite_gradient"] == 2 and stats["step"] == 2, "whichever step came last"


# -- masked groups ---

MASKED: dict[str, Callable[[Engine, list[Group]], Any]] = {
    "grpo": lambda e, data: e.train(data, GRPO(lr=1e-2)),
    "grpo, samples": lambda e, data: e.train(data, GRPO(lr=1e-2, normalizer="samples")),
    "grpo, KL": lambda e, data: e.train(data, GRPO(lr=1e-2, beta=0.1)),
    "sft": lambda e, data: e.train(data, SFT(lr=1e-2)),
    "sft, samples": lambda e, data: e.train(data, SFT(lr=1e-2, normalizer="samples")),
    "own loop": lambda e, data: (
        e.forward_backward(data, SFTLoss(SFT(normalizer="samples"))),
        e.step(AdamW(lr=1e-2)),
    )[1],
}


@pytest.mark.parametrize("budget", [8, 4096], ids=["apart", "packed"])
@pytest.mark.parametrize("way", MASKED)
def test_a_masked_group_is_left_out_however_it_is_packed(folder: Path, way: str, budget: int) -> None:
    engine, without = (load(folder, token_budget=budget) for _ in range(2))
    data = groups(engine)
    stats = MASKED[way](engine, [masked_group(), *data, masked_group()])
    expected = MASKED[way](without, data)
    assert torch.equal(adapter(engine), adapter(without)) and stats["normalizer"] == expected["normalizer"]
    assert stats.get("masked_groups", 2) == 2 and stats.get("loss") == expected.get("loss")
    assert engine.nll([masked_group(), *data]) == without.nll(data)


@pytest.mark.parametrize("way", MASKED)
def test_masked_groups_alone_are_no_step(folder: Path, way: str) -> None:
    engine = load(folder)
    before, version = adapter(engine), engine.policy_version
    stats = MASKED[way](engine, [masked_group()])
    assert stats["zero_gradient"] == 1 and stats.get("masked_groups", 1) == 1 and stats["step"] == 0
    assert torch.equal(adapter(engine), before) and engine.policy_version == version
    assert engine.nll([masked_group()]) == 0.0


def test_a_masked_parent_is_context_for_its_children(folder: Path) -> None:
    engine, other = load(folder), load(folder)
    [ids] = prompts(1, length=9)
    parent = outside(ids[:4], ids[4:], mask=[False] * 5)
    child = Group(ids, [outside(ids, [7, 8], advantage=1.0)], tree="one", parent=parent)
    engine.train([Group(ids[:4], [parent], tree="one"), child], SFT(lr=1e-2))
    other.train([outside(ids, [7, 8])], SFT(lr=1e-2))
    assert torch.allclose(adapter(engine), adapter(other), atol=1e-6)


# -- a shared sampled span ---


def branches(ids: list[int]) -> tuple[list[Group], list[Group], list[Group]]:
    """A sampled span of 4 tokens, which two samples continue: by `Group.parent`, flattened with the span
    masked in all but one copy, and flattened as it comes.
    """
    root, span, ends = ids[:5], ids[5:9], ([11, 12, 13], [14, 15])
    parent, other = outside(root, span, advantage=0.5), outside(root, [90, 91], advantage=-0.25)
    trunk = Group(root, [parent, other], tree="one")
    tails = [outside(root + span, end, advantage=1.0 - 3 * i) for i, end in enumerate(ends)]
    shared = [trunk, Group(root + span, tails, tree="one", parent=parent)]
    flat: list[list[Group]] = []
    for masks in ((True, False), (True, True)):
        samples = [
            outside(
                root, span + end, mask=[keep] * 4 + [True] * len(end), advantage=[0.5] * 4 + [a] * len(end)
            )
            for keep, end, a in zip(masks, ends, (1.0, -2.0), strict=True)
        ]
        flat.append([Group(root, [*samples, other])])
    return shared, flat[0], flat[1]


def test_a_shared_span_is_trained_once(engine: Engine, peer: Any) -> None:
    shared, once, twice = branches(prompts(1, length=12)[0])
    loss = config("constant")

    def by_engine(data: list[Group]) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        engine.zero_grad()
        tokens = engine.forward_backward(data, GRPOLoss(loss))["tokens"]
        engine.reduce_gradients()
        return engine_gradients(engine), tokens

    expected = peft_gradients(peer, grpo_by_hand(peer, once, loss))
    (by_parent, tokens), (flattened, same) = by_engine(shared), by_engine(once)
    assert tokens == same == 4 + 2 + 3 + 2
    assert largest_error(by_parent, expected) < 1e-4 and largest_error(flattened, expected) < 1e-4
    doubled, more = by_engine(twice)
    assert more == tokens + 4 and largest_error(doubled, expected) > 0.1, "the span is trained twice"
    engine.zero_grad()


# -- losses of one's own ---


def test_a_loss_that_returns_no_scalar_is_refused(engine: Engine) -> None:
    data = groups(engine)
    for loss, words in (
        (lambda logp, batch: logp.sum().item(), "returned float; it should return a scalar tensor, the sum"),
        (lambda logp, batch: None, "returned NoneType; it"),
        (lambda logp, batch: (logp.sum(), {}, {}), "returned tuple; it"),
        (lambda logp, batch: -logp, r"returned a tensor of shape \(\d+,\), not a scalar: sum it"),
        (lambda logp, batch: -logp.detach().sum(), "its sum has no gradient; compute it from the log-prob"),
        (lambda logp, batch: torch.zeros(()), "its sum has no gradient"),
        (lambda logp, batch: (logp.sum(), {"tokens": 1.0}), "statistic 'tokens' is the trainer's own"),
    ):
        with pytest.raises(EngineError, match=f"^loss: {words}"):
            engine.forward_backward(data, loss)
        engine.zero_grad()


def test_an_incomplete_gradient_makes_no_step(folder: Path) -> None:
    """Caught or not, a call that raised has left a part of its gradient."""
    engine, calls = load(folder, token_budget=16), 0
    before = adapter(engine)

    def broken(logprobs: Tensor, batch: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError("no luck")
        return -logprobs.sum()

    with pytest.raises(ZeroDivisionError):
        engine.forward_backward(groups(engine), broken)
    for finish in (engine.step, engine.reduce_gradients):
        with pytest.raises(
            EngineError, match=r"^rank 0: forward_backward raised \(ZeroDivisionError: no luck\)"
        ):
            finish()
    assert torch.equal(adapter(engine), before)
    engine.zero_grad()
    engine.forward_backward(groups(engine), broken)
    assert engine.step()["step"] == 1


def test_advantages_of_numpy_train_as_floats(folder: Path) -> None:
    import numpy as np

    engine, other = load(folder), load(folder)
    for one, kind in ((engine, np.float32), (other, float)):
        data = groups(one)
        for sample in (s for g in data for s in g.samples):
            sample.advantage = kind(sample.advantage)  # type: ignore[arg-type]
        data[1].samples[0].advantage = np.array([1.0, -1.0, 0.5]) if kind is np.float32 else [1.0, -1.0, 0.5]
        one.train(data, TRAIN)
    assert torch.equal(adapter(engine), adapter(other))


def test_a_loaded_adapter_starts_the_optimizer_anew(folder: Path, tmp_path: Path) -> None:
    fresh, used = (load(folder, lora=LoRA(rank=2, alpha=4)) for _ in range(2))
    fresh.save_adapter(tmp_path / "adapter")
    schedule = GRPO(lr=1e-2, warmup=3)
    for _ in range(2):
        used.train(groups(used), schedule)
    used.forward_backward(groups(used), GRPOLoss(schedule))
    used.load_adapter(tmp_path / "adapter")
    assert not gradient(used).any()
    data = groups(fresh)
    rates = [e.train(data, schedule)["lr"] for e in (fresh, used)]
    assert rates[0] == rates[1] and torch.equal(adapter(fresh), adapter(used))
