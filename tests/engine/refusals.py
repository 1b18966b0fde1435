"""An engine that refuses, and works on as if nothing had been asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from proactor.engine import Engine, EngineError, Sampling
from tests.engine.engines import TRAIN, adapter, drawn, prompts

Case = tuple[Callable[[Engine], Any], str]
"""What is asked of an engine, and a pattern of the line that refuses it."""


def check(engine: Engine, ask: Callable[[Engine], Any], words: str) -> None:
    """It is refused in one line; weights, optimizer, noise and queue are as before."""
    before, state, rng = adapter(engine), engine.state_dict(), torch.get_rng_state()
    with pytest.raises(EngineError, match=words) as caught:
        ask(engine)
    assert "\n" not in str(caught.value)
    assert torch.equal(before, adapter(engine)) and torch.equal(rng, torch.get_rng_state())
    after = engine.state_dict()
    assert all(
        torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in state.items()
    )
    assert engine._policy.sampler is None or engine._policy.sampler.scheduler.idle


def check_as_new(engine: Engine, cases: Iterable[Case], fresh: Engine) -> None:
    """After all these refusals it trains and samples as a fresh one."""
    for ask, words in cases:
        check(engine, ask, words)
    for e in (engine, fresh):
        groups = e.sample(prompts(2), Sampling(n=2, max_tokens=4, seed=3))
        groups[0].rewards = groups[1].rewards = [0.0, 1.0]
        e.train(groups, TRAIN)
    assert torch.equal(adapter(engine), adapter(fresh))
    last = Sampling(seed=4, max_tokens=3)
    assert drawn(engine.sample(prompts(2), last)) == drawn(fresh.sample(prompts(2), last))
