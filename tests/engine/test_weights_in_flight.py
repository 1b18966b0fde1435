"""Weights stay as they are while samples are in flight: whatever would change them waits until those have
ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, EngineError, Group, GRPOLoss, Sample, Sampling
from tests.engine.engines import STEP, TRAIN, load, outside, prompts

DRAWS = [Sampling(n=2, max_tokens=2, ignore_eos=True), Sampling(n=1, max_tokens=12, ignore_eos=True)]


def trainable() -> list[Group]:
    return [Group([1, 2], [outside([1, 2], [5 + i, 6], advantage=1.0 - 2 * i) for i in range(2)])]


CHANGES: dict[str, Callable[[Engine, Path], Any]] = {
    "train": lambda e, path: e.train(trainable(), TRAIN),
    "step": lambda e, path: (e.forward_backward(trainable(), GRPOLoss(TRAIN)), e.step(STEP)),
    "weights_changed": lambda e, path: e.weights_changed(),
    "load_adapter": lambda e, path: e.load_adapter(path / "adapter"),
    "load_state_dict": lambda e, path: e.load_state_dict(e.state_dict()),
    "resume": lambda e, path: e.resume(path / "state"),
}


def gap(engine: Engine, sample: Sample) -> float:
    """How far a sample's recorded log-probabilities are from the present policy's."""
    start = len(sample.prompt_ids)
    ids = sample.prompt_ids + sample.token_ids
    present = engine.logprobs([ids], [(start, len(ids))])[0]
    return float((present - torch.tensor(sample.policy_logprobs)).abs().max())


@pytest.mark.parametrize("change", CHANGES)
def test_samples_in_flight_end_under_the_weights_they_began_with(
    folder: Path, tmp_path: Path, change: str
) -> None:
    engine, old = load(folder), load(folder)
    engine.save_adapter(tmp_path / "adapter")
    engine.save(tmp_path / "state")
    version = engine.policy_version

    async def run() -> list[Sample]:
        samples: list[Sample] = []
        async for group in engine.stream(prompts(2), DRAWS):
            samples += group.samples
            if len(samples) == 2:
                CHANGES[change](engine, tmp_path)
                now = engine.sample(prompts(1), DRAWS[0])[0].samples[0]
                assert now.policy_version == engine.policy_version and gap(engine, now) < 1e-4
        return samples

    late = asyncio.run(run())[-1]
    assert engine.policy_version == version + (change not in ("load_state_dict", "resume"))
    assert late.policy_version == version
    assert len(late.token_ids) == 12 and gap(old, late) < 1e-4


def test_a_mask_cannot_train_the_weights_it_is_called_for(folder: Path) -> None:
    engine = load(folder)

    def mask(ids: list[int], position: int) -> None:
        engine.train(trainable(), TRAIN)

    with pytest.raises(EngineError, match=r"^train: called from inside a step"):
        engine.sample(prompts(1), Sampling(logit_mask=mask))
    engine.train(trainable(), TRAIN)


def test_a_stream_begins_with_the_weights_of_its_first_group(folder: Path) -> None:
    """Not with those of the call that made it, which may be older."""
    engine = load(folder)

    async def first(stream: Any) -> Sample:
        async for group in stream:
            return group.samples[0]
        raise AssertionError

    stream = engine.stream(prompts(1), DRAWS[1])
    for _ in range(3):
        engine.train(trainable(), TRAIN)
    sample = asyncio.run(first(stream))
    assert sample.policy_version == engine.policy_version and gap(engine, sample) < 1e-4
