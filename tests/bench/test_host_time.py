"""The split of a step's time is complete, and leaves the engine as it was."""

from __future__ import annotations

import pytest

from bench.host_time import SETTINGS, Clock, byte_tokenizer, decoding, measure, time_steps
from proactor.engine import sampler


@pytest.mark.parametrize("name", SETTINGS)
def test_every_part_is_timed_at_every_step(name: str) -> None:
    before = sampler.sample_tokens
    found = measure(byte_tokenizer(), 3, 4, SETTINGS[name])
    assert set(found["parts"]) == {"plan", "rows", "arguments", "record", "stops", "commit", "rest"}
    assert sampler.sample_tokens is before
    run = decoding(byte_tokenizer(), 3, 8, SETTINGS[name])
    drawn = run.tokens_sampled
    assert len(time_steps(run, 4, split=True)) == 4 and run.tokens_sampled == drawn + 3 * 4


def test_a_part_does_not_count_what_is_inside_it() -> None:
    ticks = iter([0.0, 1.0, 3.0, 10.0])
    clock = Clock(lambda: next(ticks))
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", lambda: inner())()
    assert dict(clock.parts) == {"inner": 2.0, "outer": 8.0}
