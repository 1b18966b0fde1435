"""The whole engine on the pretended card: the results of the CPU's engine on the same kernels, to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, SFT, Engine, Sampling, TokenBatch
from tests.card.card import on_card
from tests.card.engines import beside_card, needs_card, open_engine, write
from tests.card.process import own_process
from tests.engine.engines import adapter, drawn, outside, prompts, reward, save_tokenizer
from tests.engine.sessions import Updates, record

pytestmark = needs_card
FILTERED = Sampling(
    n=2, max_tokens=2, seed=5, temperature=0.9, top_k=40, top_p=0.97, min_p=0.01, ignore_eos=True
)
PLAIN = Sampling(n=2, max_tokens=2, seed=6, ignore_eos=True)
BARE = Sampling(n=1, max_tokens=2, seed=7, adapter=False, ignore_eos=True)
Results = dict[str, Any]


def same_on_both(folder: Path, work: Callable[[Engine], Results], **settings: Any) -> None:
    """``work`` gives on the card what it gives on the CPU."""
    with beside_card():
        expected = work(open_engine(folder, **settings))
    with on_card() as card:
        found = work(open_engine(folder, **settings))
    assert card.launches and found.keys() == expected.keys()
    for name, value in expected.items():
        mine = found[name]
        same = torch.equal(mine, value) if isinstance(value, Tensor) else mine == value
        assert same, f"{name}: {mine} on the card, {value} on the CPU"


def custom(logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of the caller's own."""
    return -(logprobs * batch.advantage).sum(), {"mine": logprobs.detach().sum()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@own_process
def test_sampling_and_grpo(tmp_path: Path, dtype: str) -> None:
    """Filters, forks, a prefix hit, the bare model beside the adapter; KL, samples, minibatches."""

    def work(engine: Engine) -> Results:
        ids = prompts(2, length=2, shared=9)
        filtered = engine.sample(ids[:1], FILTERED)
        mixed = engine.sample(ids[::-1], [PLAIN, BARE])
        groups, counters = reward([*filtered, mixed[0]]), engine.counters()
        for kind in ("tokens_avoided_prefix", "tokens_avoided_fork", "copies"):
            assert counters[kind] > 0, kind
        kl = engine.train(groups, GRPO(lr=1e-2, beta=0.02, max_norm=0.5))
        halves = engine.train(groups, GRPO(lr=1e-2, normalizer="samples", minibatches=2))
        assert halves["step"] == 3, halves
        return {
            "filtered": drawn(filtered),
            "mixed": drawn(mixed),
            "counters": counters,
            "KL": kl,
            "minibatches": halves,
            "adapter": adapter(engine).cpu(),
        }

    same_on_both(write(tmp_path / "model"), work, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@own_process
def test_scores_and_other_losses(tmp_path: Path, dtype: str) -> None:
    samples = [outside(ids[:3], ids[3:]) for ids in prompts(2, length=6, shared=2)]

    def work(engine: Engine) -> Results:
        supervised = engine.train(samples, SFT(lr=1e-2))
        scores = engine.logprobs([s.prompt_ids + s.token_ids for s in samples])
        groups = engine.sample(prompts(1, length=4), PLAIN)
        for group in groups:
            for i, sample in enumerate(group.samples):
                sample.advantage = i - 0.5
        stats = engine.forward_backward(groups, custom)
        return {
            "SFT": supervised,
            "log-probabilities": torch.cat(scores),
            "nll": engine.nll(groups),
            "own loss": stats,
            "normaliser": engine.reduce_gradients(),
            "gradient": torch.cat(
                [p.grad.flatten() for p in engine.parameters() if p.grad is not None]
            ).cpu(),
        }

    same_on_both(write(tmp_path / "model"), work, dtype=dtype)


@pytest.mark.parametrize(("family", "dtype"), [("qwen3", "bfloat16"), ("llama", "float32")])
@own_process
def test_families(tmp_path: Path, family: str, dtype: str) -> None:
    def work(engine: Engine) -> Results:
        groups = reward(engine.sample(prompts(1, length=4), PLAIN))
        return {
            "drawn": drawn(groups),
            "stats": engine.train(groups, GRPO()),
            "adapter": adapter(engine).cpu(),
        }

    same_on_both(write(tmp_path / "model", family), work, dtype=dtype)


@own_process
def test_a_session_with_text_and_a_mask(tmp_path: Path) -> None:
    """A sample of two turns: ids without a token, a stop string, a mask on the CPU, pages kept in between."""
    folder = write(tmp_path / "model", vocab_size=264, eos_token_id=256)
    save_tokenizer(folder)
    odd = torch.arange(264) % 2 == 1
    draw = Sampling(max_tokens=3, seed=3, stop=["never"], logit_mask=lambda ids, position: odd)

    async def turns(engine: Engine) -> Results:
        async with engine.session() as session:
            sample = await session.sample("a prompt of two pages", draw, key=1)
            kept = engine.counters()["pages_parked"]
            await session.advance(sample, engine.encode(" and an answer"), draw)
            return {"sample": record(sample), "parked": kept, "counters": engine.counters()}

    def work(engine: Engine) -> Results:
        results = asyncio.run(turns(engine))
        assert results["parked"] and results["counters"]["tokens_recomputed"] == 0
        return results

    same_on_both(folder, work)


@own_process
def test_samples_go_on_through_an_update(tmp_path: Path) -> None:
    """Their keys and values are computed again under the new weights, from ids that are on the CPU."""

    def work(engine: Engine) -> Results:
        updates, began = Updates(engine, {1}), engine.policy_version
        draw = Sampling(n=2, max_tokens=3, seed=6, ignore_eos=True, logit_mask=updates)
        groups = engine.sample(prompts(1, length=9), draw)
        assert updates.trained[0].result()["step"] == 1 and engine.counters()["tokens_recomputed"] > 0
        versions = [sample.token_versions() for sample in groups[0].samples]
        assert versions == [[began] * 2 + [began + 1]] * 2
        return {"drawn": drawn(groups), "counters": engine.counters(), "adapter": adapter(engine).cpu()}

    same_on_both(write(tmp_path / "model"), work, max_staleness=1)


@own_process
def test_saves_move_between_card_and_cpu(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with on_card():
        ours = open_engine(folder, stir=True)
        ours.train([outside([1, 2, 3], [4, 5, 6])], SFT(lr=1e-2))
        ours.save(tmp_path / "state", {"epoch": 1})
        ours.save_adapter(tmp_path / "adapter")
        saved = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in ours.state_dict().items()}
    with beside_card():
        plain = open_engine(folder, stir=False)
        assert plain.resume(tmp_path / "state") == {"epoch": 1}
        assert same_state(plain.state_dict(), saved)
        plain.parameters()[0].data.mul_(2)
        plain.save(tmp_path / "moved", None)
        plain.save_adapter(tmp_path / "other")
        moved = plain.state_dict()
    with on_card():
        assert not same_state(ours.state_dict(), moved)
        ours.resume(tmp_path / "moved")
        assert same_state(ours.state_dict(), moved)
        ours.load_adapter(tmp_path / "adapter")
        assert torch.equal(adapter(ours).cpu(), saved["adapter"]) and not ours.state_dict()["m"].any()
        ours.load_adapter(tmp_path / "other")
        assert torch.equal(adapter(ours).cpu(), moved["adapter"])


def same_state(one: Results, other: Results) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value.cpu(), other[name].cpu()) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )
