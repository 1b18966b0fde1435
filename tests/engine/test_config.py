"""Configs refuse what they do not know, in one line that names the key, and do not change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, AdamW, EngineConfig, EngineError, LoRA, Sampling


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sampling(temprature=0.7), ["unknown option 'temprature' (did you mean 'temperature'?)"]),
        (lambda: LoRA(ranks=8), ["ranks"]),
        (lambda: GRPO(learning_rate=1e-3), ["learning_rate"]),
        (lambda: AdamW(beta=0.9), ["beta"]),
        (lambda: SFT(epsilon=0.2), ["epsilon"]),
        (lambda: Sampling(n=10**9), ["n", "less than or equal to 1048576"]),
        (lambda: EngineConfig(kv_tokens=10**22), ["kv_tokens", "less than or equal to 268435456"]),
        (lambda: EngineConfig(page_size=10**9), ["page_size", "less than or equal to 65536"]),
        (lambda: GRPO(minibatches=10**9), ["minibatches", "less than or equal to 65536"]),
        (lambda: Sampling(n=0), ["n", "greater than or equal to 1"]),
        (lambda: Sampling(temperature=-1.0), ["temperature"]),
        (lambda: Sampling(temperature=math.nan), ["temperature"]),
        (lambda: Sampling(top_p=0.0), ["top_p"]),
        (lambda: Sampling(max_tokens=0), ["max_tokens"]),
        (lambda: LoRA(rank=0), ["rank"]),
        (lambda: LoRA(targets=()), ["at least one target"]),
        (lambda: LoRA(targets=("q", "lm_head")), ["targets", "lm_head"]),
        (lambda: LoRA(dropout=0.1), ["dropout above 0 would depend on the sequence as a whole"]),
        (lambda: GRPO(lr=0.0), ["lr"]),
        (
            lambda: GRPO(advantages="mine"),
            ["advantages", "'art', 'verl', 'mean', 'rloo', 'reinforce' or 'reinforce_baseline'"],
        ),
        (lambda: GRPO(decay="cosine"), ["decay=cosine needs total"]),
        (lambda: GRPO(epochs=0), ["epochs"]),
        (lambda: Sampling(max_new_tokens=4), ["Sampling: unknown option", "did you mean 'max_tokens'?"]),
        (lambda: LoRA(r=8), ["LoRA: unknown option 'r' (did you mean 'rank'?)"]),
        (lambda: EngineConfig(quantization="fp4"), ["quantization='fp4'", "'auto', 'nf4' or 'none'"]),
        (lambda: EngineConfig(page_size=-1), ["page_size=-1"]),
        (lambda: EngineConfig(max_batch=True), ["max_batch: should be a number, not True"]),
        (lambda: Sampling(stop=("a", "")), ["stop.1=''", "at least 1 character"]),
        (lambda: Sampling(stop=("a",) * 17), ["stop=(", "at most 16 items"]),
        (lambda: Sampling(stop=("a", "b" * 1001)), ["stop.1='bbb", "at most 1000 characters"]),
        (lambda: Sampling(stop_ids=(-1,)), ["stop_ids.0=-1"]),
        (lambda: Sampling(stop_ids=(True,)), ["stop_ids: should be a number"]),
        (lambda: Sampling(n=True), ["n: should be a number, not True"]),
        (lambda: Sampling(temperature=1e-9), ["temperature: 1e-09 is too small", "0 is greedy"]),
        (lambda: Sampling(logit_mask=torch.ones(3)), ["logit_mask: should be a function", "Tensor"]),
        (lambda: LoRA(alpha=math.inf), ["alpha=inf", "finite"]),
        (lambda: GRPO(betas=(1, 0.999)), ["betas", "below 1"]),
        (lambda: AdamW(eps=1e-50), ["eps=1e-50", "greater than"]),
        (lambda: AdamW(lr=math.inf), ["lr=inf", "finite"]),
        (lambda: AdamW(lr=math.nan), ["lr=nan"]),
        (lambda: AdamW(weight_decay=True), ["weight_decay: should be a number, not True"]),
        (lambda: LoRA(8), ["LoRA: options go by name, LoRA(rank=…), not 8"]),  # type: ignore[call-arg]
        (lambda: LoRA(targets=5), ["targets", "should be a list"]),  # type: ignore[arg-type]
        (lambda: Sampling(stop="\n"), ["stop='\\n': should be a list"]),
    ],
)
def test_configs_name_the_key(make: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(EngineError) as caught:
        make()
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_configs_do_not_change() -> None:
    config = Sampling()
    with pytest.raises(EngineError, match=r"^Sampling.n cannot be set: make another one with n=…$"):
        config.n = 2
