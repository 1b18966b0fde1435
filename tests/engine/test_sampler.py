"""What the sampler records is what the trainer recomputes, and samples end where they were told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, EngineError, Group, Sampling
from tests.engine.engines import EOS, TRAIN, load, prompts, reward

EVEN = torch.arange(101) % 2 == 0


def only_even(ids: list[int], position: int) -> torch.Tensor | None:
    """A mask hook: even ids at even positions, everything elsewhere."""
    assert len(ids) == position
    return EVEN if position % 2 == 0 else None


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.6},
    "min-p": {"min_p": 0.1},
    "all filters": {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    "mask": {"logit_mask": only_even},
    "mask and filters": {"logit_mask": only_even, "top_p": 0.7, "temperature": 1.3},
    "stop ids": {"stop_ids": tuple(range(0, 100, 7)), "max_tokens": 40},
    "seed": {"seed": 2**63 + 5},
    "ignore eos": {"ignore_eos": True},
    "one token": {"max_tokens": 1},
}


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "deterministic"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return load(folder, deterministic=request.param)


def train(engine: Engine, groups: list[Group]) -> dict[str, float]:
    """A step whose statistics are looked at, and nothing of it kept."""
    before = engine.state_dict()
    stats = engine.train(reward(groups), TRAIN)
    engine.load_state_dict(before)
    return stats


@pytest.mark.parametrize("name", SETTINGS)
def test_the_first_ratio_is_one(engine: Engine, name: str) -> None:
    sampling = Sampling(**{"n": 4, "max_tokens": 8, **SETTINGS[name]})
    groups = engine.sample(prompts(3, shared=5), sampling)
    stats = train(engine, groups)
    assert stats["tokens_trained"] == sum(len(s.token_ids) for g in groups for s in g.samples)
    # logits differ by rounding, and a temperature below 1 multiplies what they differ by
    bound = 0.0 if engine.deterministic else 1e-5 / min(1.0, sampling.temperature)
    assert stats["ratio_max_error"] <= bound and stats["sampler_trainer_gap"] <= bound
    for sample in (s for g in groups for s in g.samples):
        filtered = [a > b + 1e-6 for a, b in zip(sample.logprobs, sample.policy_logprobs, strict=True)]
        assert all(filtered[::2]) if "mask" in name else any(filtered) == sampling.filtered


def test_a_mixed_batch_has_ratio_one(engine: Engine) -> None:
    """Settings by prompt, in the same forward passes; the bare model's samples have no policy version."""
    names = list(SETTINGS)
    settings = [
        Sampling(**{"n": 2, "max_tokens": 6, **SETTINGS[name]}, adapter=i % 3 > 0)
        for i, name in enumerate(names)
    ]
    groups = engine.sample(prompts(len(names), shared=5), settings)
    with_adapter = [g for g, s in zip(groups, settings, strict=True) if s.adapter]
    bare = [g for g, s in zip(groups, settings, strict=True) if not s.adapter]
    assert train(engine, with_adapter)["ratio_max_error"] <= (0.0 if engine.deterministic else 1e-5)
    assert {s.policy_version for g in bare for s in g.samples} == {-1}
    assert train(engine, groups)["ratio_max_error"] <= (0.0 if engine.deterministic else 1e-5)
    for sample in (s for g in bare for s in g.samples if s.temperature == 1):
        start = len(sample.prompt_ids)
        ids = sample.prompt_ids + sample.token_ids
        same, other = (engine.logprobs([ids], [(start, len(ids))], adapter=a)[0] for a in (False, True))
        recorded = torch.tensor(sample.policy_logprobs)
        assert torch.allclose(same, recorded, atol=0 if engine.deterministic else 1e-5, rtol=0)
        assert float((other - recorded).abs().max()) > 1e-2


def test_a_fresh_adapter_has_ratio_one_with_the_adapter_off(folder: Path) -> None:
    engine = load(folder, stir=False, deterministic=True)
    groups = engine.sample(prompts(3), Sampling(n=3, max_tokens=6, adapter=False))
    ids = [s.prompt_ids + s.token_ids for g in groups for s in g.samples]
    spans = [(len(s.prompt_ids), len(s.prompt_ids) + len(s.token_ids)) for g in groups for s in g.samples]
    for sample, now in zip((s for g in groups for s in g.samples), engine.logprobs(ids, spans), strict=True):
        assert sample.policy_logprobs == now.tolist()


def test_an_old_version_is_not_counted_as_a_gap(folder: Path) -> None:
    engine = load(folder)
    groups = reward(engine.sample(prompts(2), Sampling(n=3, max_tokens=5)))
    engine.train(groups, TRAIN)
    stats = engine.train(groups, TRAIN)
    assert stats["ratio_max_error"] == stats["sampler_trainer_gap"] == 0.0
    assert stats["policy_version"] == 3


def test_greedy_takes_the_most_likely_token(folder: Path) -> None:
    engine = load(folder)
    [group] = engine.sample(prompts(1), Sampling(temperature=0, max_tokens=5, ignore_eos=True))
    sample = group.samples[0]
    ids = list(sample.prompt_ids)
    for token in sample.token_ids:
        scores = engine.logprobs([[*ids, t] for t in range(101)], [(len(ids), len(ids) + 1)] * 101)
        assert token == int(torch.cat(scores).argmax())
        ids.append(token)
    group.rewards = [1.0]
    with pytest.raises(EngineError, match="group 0, sample 0: greedy samples"):
        engine.train([group], TRAIN)
    with pytest.raises(EngineError, match="temperature: 0"):
        engine.nll([group])


# -- where samples end ---


def test_end_ids_end_a_sample_and_ignore_eos_goes_on(folder: Path) -> None:
    engine = load(folder)
    prompt, draw = prompts(1)[0], {"seed": 3, "max_tokens": 12, "n": 24}
    for seed in range(100):
        draw["seed"] = seed
        [whole] = engine.sample([prompt], Sampling(**draw, ignore_eos=True))
        if any(EOS in s.token_ids[2:-1] for s in whole.samples):
            break
    [cut] = engine.sample([prompt], Sampling(**draw))
    [by_id] = engine.sample([prompt], Sampling(**draw, ignore_eos=True, stop_ids=(EOS,)))
    assert cut.samples == by_id.samples
    reasons = set()
    for short, long in zip(cut.samples, whole.samples, strict=True):
        end = long.token_ids.index(EOS) + 1 if EOS in long.token_ids else 12
        assert short.token_ids == long.token_ids[:end]  # the end token is kept
        assert short.finish_reason == ("stop" if EOS in short.token_ids else "length")
        assert long.finish_reason == "length"
        reasons.add(short.finish_reason)
    assert "stop" in reasons


def test_the_context_ends_a_sample(folder: Path) -> None:
    engine = load(folder)
    prompt = prompts(1, length=engine.context_length - 3)[0]
    [group] = engine.sample([prompt], Sampling(max_tokens=10, ignore_eos=True))
    assert len(group.samples[0].token_ids) == 3 and group.samples[0].finish_reason == "context"
    [group] = engine.sample([prompt], Sampling(max_tokens=3, ignore_eos=True))
    assert group.samples[0].finish_reason == "length"
    assert train(engine, engine.sample([prompt], Sampling(n=2, max_tokens=10)))["truncated_share"] > 0


def test_stop_strings(text_folder: Path) -> None:
    engine = load(text_folder)

    def allow(text: str) -> Callable[[list[int], int], torch.Tensor]:
        ids = engine.encode(text)
        mask = torch.zeros(264, dtype=torch.bool)
        mask[ids] = True
        return lambda so_far, position: mask

    sampling = Sampling(n=40, max_tokens=30, stop=("ab", "ccc"), logit_mask=allow("abcd"))
    [group] = engine.sample(["hello"], sampling)
    assert {engine.tokenizer.decode(s.token_ids)[-2:] for s in group.samples} >= {"ab", "cc"}
    for sample in group.samples:
        raw = engine.tokenizer.decode(sample.token_ids)
        assert sample.text == raw.split("ab")[0].split("ccc")[0]
        assert ("ab" in raw or "ccc" in raw) == (sample.finish_reason == "stop")
        assert "ab" not in raw[:-1] and "ccc" not in raw[:-1]  # it stopped at once, and kept the ids
    assert train(engine, [group])["ratio_max_error"] <= 1e-5


def test_padded_ids_are_never_drawn(text_folder: Path) -> None:
    engine = load(text_folder)
    padded = range(len(engine.tokenizer), 264)
    assert len(padded) > 0
    groups = engine.sample(["a", "b"], Sampling(n=16, max_tokens=20, temperature=50.0, ignore_eos=True))
    drawn = [t for g in groups for s in g.samples for t in s.token_ids]
    assert max(drawn) < padded[0]
    first = groups[0].samples[0]
    assert first.logprobs[0] > first.policy_logprobs[0]


# -- noise ---


def tokens(groups: list[Group]) -> list[list[int]]:
    return [s.token_ids for g in groups for s in g.samples]


def test_noise_belongs_to_seed_step_key_and_sample(folder: Path) -> None:
    engine, other = load(folder), load(folder, seed=1)
    prompt = prompts(1)[0]
    draw = Sampling(n=3, max_tokens=8)
    first, second = tokens(engine.sample([prompt], draw)), tokens(engine.sample([prompt], draw))
    assert first != second, "each call draws anew"
    assert len({tuple(t) for t in first}) == 3, "and so does each sample"
    assert first != tokens(other.sample([prompt], draw)), "the engine's seed counts"
    fixed = Sampling(n=3, max_tokens=8, seed=5)
    assert tokens(engine.sample([prompt], fixed)) == tokens(engine.sample([prompt], fixed)), (
        "a request's seed holds"
    )
    pair = tokens(engine.sample([prompt, prompt], fixed))
    assert pair[:3] != pair[3:], "groups differ by index"
    assert tokens(engine.sample([prompt, prompt], fixed, keys=[9, 9]))[:3] == tokens(
        engine.sample([prompt], fixed, keys=[9])
    )


def test_the_distribution_is_the_one_recorded(folder: Path) -> None:
    """Frequencies of 6000 first tokens against exp(logprobs), chi-square over the 12 that top-k leaves."""
    engine = load(folder, max_batch=256, kv_tokens=8192)
    [group] = engine.sample(prompts(1), Sampling(n=6000, max_tokens=1, top_k=12, temperature=0.5))
    counts: dict[int, int] = {}
    expected: dict[int, float] = {}
    for sample in group.samples:
        token = sample.token_ids[0]
        counts[token] = counts.get(token, 0) + 1
        expected[token] = 6000 * torch.tensor(sample.logprobs[0]).exp().item()
    assert len(counts) == 12 and sum(expected.values()) == pytest.approx(6000, rel=1e-4)
    assert (
        sum((counts[t] - expected[t]) ** 2 / expected[t] for t in counts) < 35
    )  # 0.9997 quantile at 11 degrees


@pytest.mark.parametrize("name", ["top-k", "top-p", "min-p", "all filters", "mask and filters"])
def test_filters_keep_what_they_say(folder: Path, name: str) -> None:
    """The first tokens' support and probabilities against the filters applied to the full distribution."""
    engine, sampling = load(folder), Sampling(**{**SETTINGS[name], "n": 4000, "max_tokens": 1})
    [ids] = prompts(1)
    logits = (
        torch.cat(engine.logprobs([[*ids, t] for t in range(101)], [(10, 11)] * 101)) / sampling.temperature
    )
    probs = logits.softmax(0) * (EVEN if sampling.logit_mask else 1)
    kept: set[int] = set(torch.nonzero(probs).flatten().tolist())
    if sampling.top_k:
        kept = set(sorted(kept, key=lambda t: -probs[t])[: sampling.top_k])
    if sampling.top_p < 1:
        ranked, total = sorted(kept, key=lambda t: -probs[t]), float(sum(probs[t] for t in kept))
        kept = {
            t
            for i, t in enumerate(ranked)
            if float(sum(probs[r] for r in ranked[:i])) < sampling.top_p * total
        }
    kept = {t for t in kept if probs[t] >= sampling.min_p * max(probs[t] for t in kept)}
    assert 1 < len(kept) < 90
    [group] = engine.sample([ids], sampling)
    left = sum(float(probs[t]) for t in kept)
    assert {s.token_ids[0] for s in group.samples} == kept
    for sample in group.samples[:50]:
        assert sample.logprobs[0] == pytest.approx(float((probs[sample.token_ids[0]] / left).log()), abs=1e-4)
        assert sample.policy_logprobs[0] == pytest.approx(
            float(logits.log_softmax(0)[sample.token_ids[0]]), abs=1e-4
        )
