"""The most probable tokens beside the drawn ones: those of the full softmax, aligned with every token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from proactor.engine import Engine, EngineError, Sample, Sampling
from tests.engine.engines import load, write_text_folder
from tests.engine.sessions import run

PROMPTS = [[72, 101, 108], [108, 111]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_folder(tmp_path_factory.mktemp("tops") / "model")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder, deterministic=True)


def full_softmax(folder: Path, sample: Sample, temperature: float) -> torch.Tensor:
    """Float64 [T, V] at each of the sample's tokens, by transformers; -inf for ids without a token."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([sample.prompt_ids + sample.token_ids])).logits[0]
    logp = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1] / (temperature or 1.0), -1)
    logp[:, 257:] = -torch.inf
    return logp


@pytest.mark.parametrize(("temperature", "count"), [(1.0, 5), (0.6, 20), (0.0, 1)])
def test_they_are_those_of_the_full_softmax(
    engine: Engine, folder: Path, temperature: float, count: int
) -> None:
    """Whatever the filters leave to be drawn, and beside rows that ask for another number, or for none."""
    drawn = Sampling(n=2, max_tokens=8, seed=3, temperature=temperature, top_p=0.7, adapter=False)
    for group in engine.sample(PROMPTS, drawn.model_copy(update={"top_logprobs": count})):
        for sample in group.samples:
            assert sample.top_logprobs is not None
            reference = full_softmax(folder, sample, temperature)
            for logp, near in zip(reference, sample.top_logprobs, strict=True):
                assert [token for token, _ in near] == logp.topk(count).indices.tolist()
                assert [value for _, value in near] == pytest.approx(
                    logp.topk(count).values.tolist(), abs=1e-5
                )


def test_nothing_else_changes_and_the_drawn_token_has_its_own_number(engine: Engine) -> None:
    drawn = Sampling(n=4, max_tokens=16, temperature=0)
    plain, topped = (
        engine.sample(PROMPTS, drawn.model_copy(update={"top_logprobs": count})) for count in (0, 20)
    )
    for before, after in zip(plain, topped, strict=True):
        for one, other in zip(before.samples, after.samples, strict=True):
            assert one.top_logprobs is None and other.top_logprobs is not None
            assert (one.token_ids, one.policy_logprobs) == (other.token_ids, other.policy_logprobs)
            own = [dict(near)[t] for t, near in zip(other.token_ids, other.top_logprobs, strict=True)]
            assert own == other.policy_logprobs


def test_rows_that_ask_for_different_numbers_share_steps(engine: Engine) -> None:
    async def at_once() -> list[list[int]]:
        async with engine.session() as session:
            kept = []
            for count in (3, 0, 7):
                options = Sampling(max_tokens=6, temperature=0, ignore_eos=True, top_logprobs=count)
                kept.append(session.sample(PROMPTS[0], options, key=count))
            samples = await asyncio.gather(*kept)
        return [[len(near) for near in sample.token_tops()] for sample in samples]

    assert run(at_once()) == [[3] * 6, [0] * 6, [7] * 6]


def test_a_turn_that_is_appended_keeps_them_in_their_places() -> None:
    first = Sample([1], [2, 3], [-1.0] * 2, [-1.0] * 2, top_logprobs=[[(2, -1.0)], [(3, -1.0)]])
    first.extend([4])
    first.append(Sample([1, 2, 3, 4], [5], [-1.0], [-1.0]))
    assert first.top_logprobs == [[(2, -1.0)], [(3, -1.0)], [], []]
    plain = Sample([1], [2], [-1.0], [-1.0])
    plain.append(Sample([1, 2], [3], [-1.0], [-1.0], top_logprobs=[[(3, -1.0)]]))
    assert plain.top_logprobs == [[], [(3, -1.0)]]


def test_more_than_twenty_are_refused() -> None:
    with pytest.raises(EngineError, match="Sampling: top_logprobs=21"):
        Sampling(top_logprobs=21)
