"""Samples that grow turn by turn, also where not everything was recorded, and how these are trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, Engine, Group, Sample, Sampling
from proactor.engine.checks import check_groups
from tests.engine.engines import adapter, load, outside
from tests.engine.sessions import run

UNKNOWN = pytest.approx([math.nan] * 2, nan_ok=True)


def drawn(prompt: list[int], *logprobs: float) -> Sample:
    """A turn of which everything was recorded."""
    return Sample(prompt, [7] * len(logprobs), list(logprobs), [v - 1.0 for v in logprobs])


def fits(sample: Sample) -> bool:
    check_groups([Group(sample.prompt_ids, [sample])], 0, "policy")
    return True


def test_what_was_not_recorded_stays_so() -> None:
    sample = outside([1], [2, 3])
    sample.extend([4])
    sample.append(outside([1, 2, 3, 4], [5]))
    assert sample.logprobs == sample.policy_logprobs == [] and fits(sample)
    assert sample.trained_mask() == [True, True, False, True]


def test_a_turn_that_was_recorded_after_others_that_were_not() -> None:
    sample = outside([1], [2, 3])
    sample.extend([4])
    sample.append(drawn([1, 2, 3, 4], -0.5, -0.25))
    sample.extend([8])
    assert sample.logprobs[:2] == sample.policy_logprobs[:2] == UNKNOWN
    assert sample.logprobs[3:] == [-0.5, -0.25, 0.0] and sample.policy_logprobs[3:] == [-1.5, -1.25, 0.0]
    assert fits(sample)


def test_a_turn_that_was_not_recorded_after_one_that_was() -> None:
    sample = drawn([1], -0.5)
    sample.extend([4])
    sample.append(outside([1, 7, 4], [5, 6]))
    assert sample.logprobs[:2] == [-0.5, 0.0] and sample.logprobs[2:] == sample.policy_logprobs[2:] == UNKNOWN
    assert fits(sample)


def test_an_observation_before_the_first_turn() -> None:
    sample = outside([1], [])
    sample.extend([4, 5])
    sample.append(drawn([1, 4, 5], -0.5))
    assert sample.logprobs == [0.0, 0.0, -0.5] and sample.policy_logprobs == [0.0, 0.0, -1.5]


@pytest.mark.parametrize("config", [GRPO(lr=1e-2), GRPO(lr=1e-2, importance_cap=2.0), SFT(lr=1e-2)])
def test_a_token_without_a_record_is_compared_with_the_present_policy(folder: Path, config: Any) -> None:
    """A sample from outside that was gone on with, trained as it is and with all that it lacks filled in."""

    async def grown(engine: Engine) -> Sample:
        async with engine.session() as session:
            sample = outside([1, 2], [3, 4])
            return await session.advance(sample, [5], Sampling(max_tokens=3, ignore_eos=True))

    after = []
    for filled in (False, True):
        engine = load(folder, deterministic=True)
        sample = run(grown(engine))
        assert len(sample.logprobs) == len(sample.token_ids) == 6
        if filled:
            [known] = engine.logprobs([sample.prompt_ids + sample.token_ids], [(2, 8)])
            sample.logprobs[:2] = sample.policy_logprobs[:2] = known[:2].tolist()
        other = outside(sample.prompt_ids, [9], advantage=-1.0)
        sample.advantage = 1.0
        before = adapter(engine)
        engine.train([Group(sample.prompt_ids, [sample, other])], config)
        after.append(adapter(engine))
        assert not torch.equal(before, after[-1])
    assert torch.equal(*after)
