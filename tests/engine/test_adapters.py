"""Several adapters on one base: each samples, trains and is saved as if it were alone, in shared batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, Engine, EngineError, Group, GRPOLoss, LoRA, Sample, Sampling, SFTLoss
from tests.engine.engines import TRAIN, adapter, drawn, idle, load, outside, prompts, reward, sampler, shake
from tests.engine.sessions import Updates

POLICY, JUDGE = LoRA(rank=4, alpha=8), LoRA(rank=3, alpha=12, targets=("q", "v", "down"))
BOTH = {"policy": POLICY, "judge": JUDGE}
PROMPTS = prompts(6, shared=7)
DRAW = Sampling(n=2, max_tokens=8, seed=3, temperature=1.1, ignore_eos=True)


def stir(engine: Engine, seeds: Mapping[str, int]) -> Engine:
    """Adapters with an effect, each drawn with a seed of its own."""
    for name, seed in seeds.items():
        shake(engine, seed, adapter=name)
    return engine


def both(folder: Path, **changes: Any) -> Engine:
    return stir(load(folder, stir=False, lora=BOTH, **changes), {"policy": 0, "judge": 1})


def alone(folder: Path, lora: LoRA, seed: int, **changes: Any) -> Engine:
    """An engine with one of the two, of the same weights."""
    return stir(load(folder, stir=False, lora=lora, **changes), {"policy": seed})


def of(name: bool | str) -> Sampling:
    return DRAW.model_copy(update={"adapter": name})


def bits(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


@pytest.fixture(scope="module")
def own(folder: Path) -> dict[str | None, Engine]:
    """Engines with one adapter, and without; they sample alone."""
    return {
        "policy": alone(folder, POLICY, 0, deterministic=True),
        "judge": alone(folder, JUDGE, 1, deterministic=True),
        None: load(folder, lora=None, deterministic=True),
    }


# -- sampling ---


@pytest.mark.parametrize("settings", [{}, {"max_batch": 3, "token_budget": 6}], ids=["at once", "in parts"])
def test_a_mixed_batch_draws_what_each_adapter_alone_would(
    folder: Path, own: dict[str | None, Engine], settings: dict[str, Any]
) -> None:
    names: list[bool | str] = ["judge", True, False, "policy", "judge", False]
    mixed = both(folder, deterministic=True, **settings).sample(PROMPTS, [of(name) for name in names])
    for i, (name, group) in enumerate(zip(names, mixed, strict=True)):
        asked = None if name is False else "judge" if name == "judge" else "policy"
        assert drawn([group]) == drawn(own[asked].sample([PROMPTS[i]], DRAW, keys=[i])), name
        assert {(s.adapter, s.policy_version) for s in group.samples} == {(asked, 1 if asked else -1)}
    texts = {tuple(group.samples[0].token_ids) for group in mixed}
    assert len(texts) == len(names), "the adapters have an effect"


def test_the_fast_mode_agrees(folder: Path, own: dict[str | None, Engine]) -> None:
    names = [False, "judge", "policy"] * 2
    mixed = both(folder).sample(PROMPTS, [of(name) for name in names])
    for i, name in enumerate(["judge", "policy"], 1):
        [expected] = own[name].sample([PROMPTS[i]], DRAW, keys=[i])
        for sample, other in zip(mixed[i].samples, expected.samples, strict=True):
            assert sample.token_ids == other.token_ids, name
            assert sample.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_scores_are_those_of_the_adapter_that_is_named(folder: Path, own: dict[str | None, Engine]) -> None:
    engine, judge = both(folder), own["judge"]
    ids = [PROMPTS[3]]
    [named], [alone], [default] = (
        engine.logprobs(ids, adapter="judge"),
        judge.logprobs(ids),
        engine.logprobs(ids),
    )
    assert torch.allclose(named, alone, atol=1e-5) and not torch.allclose(default, alone, atol=1e-2)
    assert torch.equal(default, engine.logprobs(ids, adapter="policy")[0])
    assert engine.greedy(ids, adapter="judge")[0].equal(judge.greedy(ids)[0])
    groups = [Group(ids[0], [outside(ids[0], [5, 6, 7])])]
    assert engine.nll(groups, "judge") == pytest.approx(judge.nll(groups), abs=1e-5)
    assert engine.nll(groups, "judge") != pytest.approx(engine.nll(groups), abs=1e-3)
    assert engine.nll(groups, False) == pytest.approx(own[None].nll(groups), abs=1e-5)


def test_a_session_goes_on_with_the_adapter_that_began(folder: Path, own: dict[str | None, Engine]) -> None:
    engine = both(folder, deterministic=True)

    async def run(engine: Engine, name: bool | str) -> tuple[Sample, list[Sample]]:
        async with engine.session() as session:
            one = await session.sample(PROMPTS[0], of(name).model_copy(update={"n": 1}), key=4)
            if name == "judge":
                with pytest.raises(EngineError, match="adapter 'policy' cannot go on what 'judge' drew"):
                    await session.advance(one, [], Sampling(temperature=1.1))
            branches = await session.branch(one, 0, 2, key=5)
            return await session.advance(one, [7, 8]), branches

    (mine, branches), (one, others) = asyncio.run(run(engine, "judge")), asyncio.run(run(own["judge"], True))
    assert mine.token_ids == one.token_ids and mine.logprobs == one.logprobs
    assert [b.token_ids for b in branches] == [b.token_ids for b in others]
    assert {s.adapter for s in (mine, *branches)} == {"judge"}


# -- training ---


def test_an_update_leaves_the_others_cache_version_and_moments_alone(folder: Path) -> None:
    engine = both(folder, deterministic=True)
    names = ["policy", "judge", False]
    before = {name: drawn(engine.sample([PROMPTS[5]], of(name))) for name in names}
    start = bits(engine.state_dict())

    def reused(name: bool | str) -> int:
        counted = engine.counters()["tokens_avoided_prefix"]
        again = drawn(engine.sample([PROMPTS[5]], of(name)))
        assert (again == before[name]) == (name != "judge")
        return engine.counters()["tokens_avoided_prefix"] - counted

    groups = reward(engine.sample(PROMPTS[:2], of("judge")))
    stats = engine.train(groups, TRAIN, "judge")
    assert stats["policy_version"] == engine.versions["judge"] == 2 and engine.versions["policy"] == 1
    assert stats["ratio_max_error"] == 0.0 and idle(engine)
    pages = len(PROMPTS[5]) // 4 * 4
    once = {name: reused(name) for name in names}
    assert once["policy"] == once[False] >= pages - 4
    assert once["judge"] < len(PROMPTS[5]) - len(PROMPTS[0]), "only what is left of the new weights' KV"
    after = bits(engine.state_dict())
    changed = {key for key, value in after.items() if value != start[key]}
    assert changed == {f"judge.{key}" for key in ("adapter", "m", "v", "steps", "policy_version")} | {
        "samplings"
    }


def test_training_one_equals_training_it_alone(folder: Path) -> None:
    engine, judge = both(folder, deterministic=True), alone(folder, JUDGE, 1, deterministic=True)
    for _ in range(2):
        mine = reward(engine.sample(PROMPTS[:2], of("judge")))
        assert engine.train(reward(engine.sample(PROMPTS[3:4], DRAW)), TRAIN)["zero_gradient"] == 0
        ours = engine.train(mine, GRPO(lr=1e-2, beta=0.02), "judge")
        theirs = judge.train(reward(judge.sample(PROMPTS[:2], DRAW)), GRPO(lr=1e-2, beta=0.02))
        assert ours == theirs
    assert torch.equal(engine._trainer("judge").lora.flat, adapter(judge))
    groups = [Group([1, 2], [outside([1, 2], [3, 4])])]
    engine.forward_backward(groups, SFTLoss(SFT()), "judge")
    assert not adapter_gradient(engine, "policy").any() and adapter_gradient(engine, "judge").any()
    engine.zero_grad()
    assert engine.step(adapter="judge")["normalizer"] == 2
    assert engine.versions == {"policy": 3, "judge": 4}


def adapter_gradient(engine: Engine, name: str) -> torch.Tensor:
    trainer = engine._trainer(name)
    return trainer.lora.grad if trainer.fixed is None else trainer.fixed


def test_samples_in_flight_go_on_through_another_adapters_update(
    folder: Path, own: dict[str | None, Engine]
) -> None:
    """Theirs have a new version where they go on; the policy's are those of an undisturbed call."""
    engine = both(folder, max_staleness=1, deterministic=True)
    updates = Updates(engine, {4})
    train = engine.train
    engine.train = lambda groups, config: train(groups, config, "judge")  # type: ignore[method-assign]
    asked = [of("policy").model_copy(update={"logit_mask": updates}), of("judge")]
    mixed = engine.sample(PROMPTS[:2], asked)
    updates.trained[0].result(60)
    assert engine.versions == {"policy": 1, "judge": 2}
    assert drawn(mixed[:1]) == drawn(own["policy"].sample(PROMPTS[:1], DRAW))
    assert all(sample.versions is None for sample in mixed[0].samples)
    assert {v for sample in mixed[1].samples for v in sample.token_versions()} == {1, 2}


def test_samples_of_another_adapter_are_not_trained_unless_the_caller_says_so(folder: Path) -> None:
    engine = both(folder)
    groups, before = reward(engine.sample(PROMPTS[:2], of("judge"))), bits(engine.state_dict())
    wrong = r"group 0, sample 0: drawn by adapter 'judge', and 'policy' is trained; .* policy_version to -1"
    for call in (
        lambda: engine.train(groups, TRAIN),
        lambda: engine.forward_backward(groups, GRPOLoss(TRAIN)),
    ):
        with pytest.raises(EngineError, match=wrong):
            call()
    assert bits(engine.state_dict()) == before
    for sample in (sample for group in groups for sample in group.samples):
        sample.adapter, sample.policy_version = None, -1
    assert engine.train(groups, TRAIN)["policy_version"] == 2
    mine = Sample(PROMPTS[0], [], mask=[], temperature=DRAW.temperature)
    mine.append(engine.sample([PROMPTS[0]], of("judge"))[0].samples[0])
    assert mine.adapter == "judge"
    later = Sample(mine.prompt_ids + mine.token_ids, [3], temperature=DRAW.temperature, adapter="policy")
    with pytest.raises(EngineError, match=r"append: drawn by adapter 'policy', this sample by 'judge'"):
        mine.append(later)


# -- saving ---


def test_a_save_holds_all_adapters_and_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    engine = both(folder, deterministic=True)
    engine.train(reward(engine.sample(PROMPTS[:2], of("judge"))), TRAIN, "judge")
    engine.train(reward(engine.sample(PROMPTS[:2], DRAW)), TRAIN)
    engine.save(tmp_path / "state", {"step": 1})
    other = load(folder, stir=False, lora=dict(reversed(BOTH.items())), deterministic=True, seed=8)
    assert other.adapters == ("judge", "policy") and other.resume(tmp_path / "state") == {"step": 1}
    assert other.versions == {"judge": 2, "policy": 2}
    for name in BOTH:
        mine, theirs = (bits(e._trainer(name).optimizer.state()) for e in (engine, other))
        assert mine == theirs
    for name in BOTH:
        assert drawn(engine.sample(PROMPTS[:2], of(name))) == drawn(other.sample(PROMPTS[:2], of(name)))


def test_a_save_of_one_adapter_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    """The keys that every version wrote and reads."""
    engine = alone(folder, POLICY, 0)
    state = engine.state_dict()
    assert [*state] == [
        *("adapter", "m", "v", "steps", "skipped_steps", "empty_steps", "lora"),
        *("policy_version", "samplings", "seed"),
    ]
    twin = load(folder, stir=False, lora={"policy": POLICY}, seed=5)
    twin.load_state_dict(state)
    assert bits(twin.state_dict()) == bits(state)


@pytest.mark.parametrize(
    ("saved", "loras", "error"),
    [
        (None, BOTH, "holds adapters policy; this engine's are policy, judge"),
        (BOTH, {"policy": POLICY}, "holds adapters policy, judge; this engine's are policy"),
        (BOTH, {"policy": POLICY, "user": JUDGE}, "policy, judge; this engine's are policy, user"),
        (
            BOTH,
            {"judge": POLICY, "policy": JUDGE},
            "adapter policy: an adapter of rank 4, this engine's has rank 3",
        ),
    ],
)
def test_a_save_of_other_adapters_is_refused_by_name(
    folder: Path, tmp_path: Path, saved: Any, loras: dict[str, LoRA], error: str
) -> None:
    load(folder, lora=saved or POLICY).save(tmp_path / "state")
    engine = load(folder, lora=loras)
    before = bits(engine.state_dict())
    with pytest.raises(EngineError, match=error) as raised:
        engine.resume(tmp_path / "state")
    assert str(tmp_path / "state") in str(raised.value) and bits(engine.state_dict()) == before


def test_a_part_that_is_damaged_changes_no_adapter(folder: Path) -> None:
    engine = both(folder)
    before = engine.state_dict()
    for key, value, error in (
        ("judge.m", before["judge.m"][:-1], "adapter judge: m of"),
        ("judge.policy_version", None, "adapter judge: policy_version should be an integer"),
        ("adapters", "policy", "adapters should be names"),
    ):
        with pytest.raises(EngineError, match=error):
            engine.load_state_dict({**before, "adapter": before["adapter"] + 1, key: value})
    assert bits(engine.state_dict()) == bits(before)


def test_one_adapters_folder_loads_into_another(folder: Path, tmp_path: Path) -> None:
    engine = stir(load(folder, stir=False, lora={"policy": JUDGE, "judge": JUDGE}), {"judge": 1})
    engine.train(reward(engine.sample(PROMPTS[:2], of("judge"))), TRAIN, "judge")
    judge = bits(engine._trainer("judge").optimizer.state())
    engine.save_adapter(tmp_path / "judge", "judge")
    engine.load_adapter(tmp_path / "judge")
    assert torch.equal(adapter(engine), engine._trainer("judge").lora.flat)
    assert bits(engine._trainer("judge").optimizer.state()) == judge
    assert engine.versions == {"policy": 1, "judge": 2}


# -- refusals and readings ---


@pytest.mark.parametrize(
    ("lora", "error"),
    [
        ({}, "Engine.load: lora: names no adapter"),
        ({"base": POLICY}, "lora: 'base' cannot name an adapter: .* not 'base'"),
        ({"a judge": POLICY}, "lora: 'a judge' cannot name an adapter"),
        ({"policy": POLICY, "judge": 4}, "lora: judge should be a LoRA, not 4"),
        ([POLICY], "lora should be a LoRA, not"),
    ],
)
def test_what_cannot_be_adapters_is_refused(folder: Path, lora: Any, error: str) -> None:
    with pytest.raises(EngineError, match=error):
        load(folder, lora=lora)


def test_unknown_names_are_refused_with_the_known_ones(folder: Path, tmp_path: Path) -> None:
    engine, known = both(folder), "adapter 'user' is none of 'policy', 'judge'"
    groups = [Group([1, 2], [outside([1, 2], [3])])]
    calls: list[Any] = [
        lambda: engine.sample([[1]], of("user")),
        lambda: engine.train(groups, SFT(), "user"),
        lambda: engine.forward_backward(groups, SFTLoss(SFT()), "user"),
        lambda: engine.logprobs([[1, 2]], adapter="user"),
        lambda: engine.greedy([[1, 2]], "user"),
        lambda: engine.nll(groups, "user"),
        lambda: engine.plan(groups, SFT(), "user"),
        lambda: engine.save_adapter(tmp_path / "a", "user"),
        lambda: engine.load_adapter(tmp_path / "a", "user"),
        *(
            lambda call=call: getattr(engine, call)(adapter="user")
            for call in ("reduce_gradients", "step", "weights_changed", "zero_grad", "parameters")
        ),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=known):
            call()
    with pytest.raises(EngineError, match="adapter 'judge' is unknown: this engine has none"):
        load(folder, lora=None).sample([[1]], of("judge"))
    assert sampler(engine).scheduler.idle


def test_memory_and_plans_count_all_adapters(folder: Path) -> None:
    engine, groups = both(folder), [Group([1, 2], [outside([1, 2], [3])])]
    own = [alone(folder, lora, 0) for lora in (POLICY, JUDGE)]
    for kind in ("adapter", "optimizer"):
        assert engine.memory()[kind] == sum(one.memory()[kind] for one in own) > 0
    bare = own[0].plan(groups).held - sum(own[0].memory()[kind] for kind in ("adapter", "optimizer"))
    held = bare + sum(engine.memory()[kind] for kind in ("adapter", "optimizer"))
    for name, one in zip(BOTH, own, strict=True):
        planned = engine.plan(groups, adapter=name)
        assert planned.held == held and planned.trees[0].operations == one.plan(groups).trees[0].operations
