"""Calls to train, score or save that are refused: one clear line that names the key, group or sample, and an
engine that works on as if nothing had been asked.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proactor.engine import GRPO, SFT, AdamW, Engine, EngineError, Group, Sample, TokenBatch, Tree
from tests.engine.engines import TRAIN, load
from tests.engine.refusals import Case, check, check_as_new


def sample(**changes: Any) -> Sample:
    return Sample(**{"prompt_ids": [1, 2], "token_ids": [3, 4], "reward": 1.0, **changes})


def total(logprobs: Tensor, batch: TokenBatch) -> Tensor:
    return logprobs.sum()


def group(*samples: Sample) -> Group:
    return Group([1, 2], list(samples))


TRAINING: dict[str, Case] = {
    "nan reward": (
        lambda e: e.train([group(sample(), sample(reward=math.nan))], TRAIN),
        r"^group 0, sample 1: reward is nan; all samples",
    ),
    "infinite reward": (
        lambda e: e.train([group(sample(reward=math.inf))], TRAIN),
        r"^group 0, sample 0: reward is inf",
    ),
    "large reward": (
        lambda e: e.train(
            [group(sample(reward=1e200), sample())], TRAIN.model_copy(update={"advantages": "reinforce"})
        ),
        r"^group 0, sample 0: reward is 1e\+200; .* a finite float32 reward",
    ),
    "no reward": (
        lambda e: e.train([group(sample()), group(sample(reward=None))], TRAIN),
        r"^group 1, sample 0: reward is None",
    ),
    "greedy": (
        lambda e: e.train([group(sample(temperature=0.0))], TRAIN),
        r"^group 0, sample 0: greedy samples \(temperature 0\) cannot",
    ),
    "greedy sft": (lambda e: e.train([sample(temperature=0.0)], SFT()), r"^sample.temperature: 0 \(greedy\)"),
    "nothing": (lambda e: e.train([], TRAIN), r"^train: nothing to train on$"),
    "samples to grpo": (
        lambda e: e.train([sample()], TRAIN),
        r"^train: GRPO: takes a list of groups; item 0 is a Sample$",
    ),
    "tuples to sft": (
        lambda e: e.train([([1], [2])], SFT()),
        r"^train: SFT: takes a list of groups or samples; item 0 is a tuple$",
    ),
    "one group": (
        lambda e: e.train(group(sample()), TRAIN),
        r"^train: GRPO: takes a list of groups, not one Group: write \[it\]$",
    ),
    "None": (lambda e: e.train(None, SFT()), r"^train: SFT: takes a list of groups or samples, not None$"),
    "a dictionary as config": (
        lambda e: e.train([group(sample())], {"lr": 1e-4}),
        r"^train: config should be a GRPO or an SFT, not {'lr': 0.0001}$",
    ),
    "an optimizer as config": (
        lambda e: e.train([group(sample())], AdamW()),
        r"^train: config should be a GRPO or an SFT, not an AdamW$",
    ),
    "a class as config": (lambda e: e.train([group(sample())], GRPO), r"^train: config should be a GRPO or"),
    "step config": (lambda e: e.step({"lr": 1}), r"^step: config should be an AdamW, not {'lr': 1}$"),
    "one group of gradients": (
        lambda e: e.forward_backward(group(sample()), total),
        r"^forward_backward: takes a list of groups or trees, not one Group",
    ),
    "samples of gradients": (
        lambda e: e.forward_backward([sample()], total),
        r"^forward_backward: takes a list of groups or trees; item 0 is a Sample$",
    ),
    "loss that is none": (
        lambda e: e.forward_backward([group(sample())], "grpo"),
        r"^forward_backward: loss should be a function, not 'grpo'$",
    ),
    "samples to nll": (lambda e: e.nll([sample()]), r"^nll: takes a list of groups; item 0 is a Sample$"),
    "text as ids": (
        lambda e: e.train([Group("a", [Sample("a", "b")])], SFT()),
        r"^group.prompt_ids should be a list of token ids, not 'a'$",
    ),
    "fractions as ids": (
        lambda e: e.train([sample(token_ids=[3.5, 4.0])], SFT()),
        r"^sample.token_ids should be a list of token ids, not \[3.5, 4.0\]$",
    ),
    "no tokens": (
        lambda e: e.train([sample(token_ids=[])], SFT()),
        r"^group 0, sample 0: token_ids: a sample needs at least one token$",
    ),
    "no prompt": (
        lambda e: e.train([Group([], [sample(prompt_ids=[])])], SFT()),
        r"^group 0: prompt_ids: a prompt needs at least one token$",
    ),
    "short mask": (
        lambda e: e.train([sample(mask=[True])], SFT()),
        r"^group 0, sample 0: a mask of 1 for 2 tokens$",
    ),
    "id outside": (lambda e: e.train([sample(token_ids=[3, 101])], SFT()), r"ids outside 0 … 100"),
    "beyond the context": (
        lambda e: e.train([sample(token_ids=[3] * 130)], SFT()),
        r"132 tokens .* context of 128",
    ),
    "prompt beyond the context": (
        lambda e: e.train([Group([1] * 200, [sample(prompt_ids=[1] * 200)])], SFT()),
        r"tokens .* context of 128",
    ),
    "another prompt": (
        lambda e: e.train([Group([1, 3], [sample()])], SFT()),
        r"^group: a sample's prompt is not the group's$",
    ),
    "short logprobs": (
        lambda e: e.train([group(sample(policy_logprobs=[-1.0], advantage=1.0))], TRAIN),
        r"^group 0, sample 0: policy_logprobs: 1 log-probabilities for 2 tokens$",
    ),
    "short advantage": (
        lambda e: e.train([group(sample(advantage=[1.0] * 5))], TRAIN),
        r"^group 0, sample 0: advantage: 5 values for a sample of 1 turns and 2 tokens$",
    ),
    "long logprobs of gradients": (
        lambda e: e.forward_backward([group(sample()), group(sample(), sample(logprobs=[-1.0] * 3))], total),
        r"^group 1, sample 1: logprobs: 3 log-probabilities for 2 tokens$",
    ),
    "later version": (
        lambda e: e.train([group(sample(policy_version=e.policy_version + 1))], TRAIN),
        r"^group 0, sample 0: drawn by policy version \d+ to \d+, and the policy is at \d+$",
    ),
    "later version of a token": (
        lambda e: e.forward_backward([group(sample(versions=[0, 99]))], total),
        r"^group 0, sample 0: drawn by policy version 0 to 99, and the policy is at \d+$",
    ),
    "nan advantage of gradients": (
        lambda e: e.forward_backward([group(sample(), sample(advantage=[0.0, math.nan]))], total),
        r"^group 0, sample 1: advantage is nan; it should be a finite float32 number$",
    ),
    "negative weight": (
        lambda e: e.train([group(sample(weight=[1.0, -1.0]))], TRAIN),
        r"^group 0, sample 0: weight is -1.0; it should be a finite number of at least 0$",
    ),
    "short weight": (
        lambda e: e.train([sample(weight=[1.0] * 3)], SFT()),
        r"^group 0, sample 0: weight: 3 values for a sample of 1 turns and 2 tokens$",
    ),
    "an empty node of gradients": (
        lambda e: e.forward_backward([group(sample()), Group([1], [Sample([1], [])])], total),
        r"^group 1, sample 0: token_ids: a sample needs at least one token$",
    ),
    "span": (
        lambda e: e.logprobs([[1, 2, 3]], [(0, 2)]),
        r"^logprobs: span 0:2 of sequence 0, which has 3 tokens",
    ),
    "long logprobs": (
        lambda e: e.logprobs([[1] * 129]),
        r"^logprobs: sequence 0 has 129 tokens, the context 128$",
    ),
    "one sequence": (
        lambda e: e.logprobs([1, 2, 3]),
        r"^logprobs: sequence 0 is a list of token ids, not 1$",
    ),
    "a text as sequence": (lambda e: e.logprobs(["abc"]), r"^logprobs: sequence 0 .* not 'abc'$"),
    "no sequences": (lambda e: e.logprobs(None), r"^logprobs: takes a list of lists of token ids, not None$"),
    "spans of one": (lambda e: e.logprobs([[1, 2]], (1, 2)), r"^logprobs: 1 sequences with 2 spans$"),
    "a number as span": (
        lambda e: e.logprobs([[1, 2]], [1]),
        r"^logprobs: the span of sequence 0 is \(start, end\), not 1$",
    ),
    "save nowhere": (lambda e: e.save(None), r"^save: takes a file, not None$"),
    "resume nothing": (lambda e: e.resume(""), r"^resume: takes a file, not ''$"),
    "save a tensor": (
        lambda e: e.save("never-written.pt", {"x": torch.ones(2)}),
        r"^never-written.pt: cannot save, the record is no JSON \(Object of type Tensor",
    ),
    "save a list": (
        lambda e: e.save("never-written.pt", [1]),
        r"^save: record should be a Mapping, not \[1\]$",
    ),
    "state": (lambda e: e.load_state_dict(None), r"^load_state_dict: state should be a Mapping, not None$"),
    "save an adapter nowhere": (lambda e: e.save_adapter(""), r"^save_adapter: takes a folder, not ''$"),
    "load an adapter of nowhere": (
        lambda e: e.load_adapter(None),
        r"^load_adapter: takes a folder, not None$",
    ),
    "logprobs id": (lambda e: e.logprobs([[1, 101]]), r"ids outside 0 … 100"),
    "tree": (lambda e: Tree([Group([1], [Sample([1], [])])]), r"^sample.token_ids"),
}


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "deterministic"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return load(folder, deterministic=request.param, token_budget=64)


@pytest.mark.parametrize("case", TRAINING)
def test_training(engine: Engine, case: str) -> None:
    check(engine, *TRAINING[case])


def test_after_all_that_it_works_as_new(engine: Engine, folder: Path) -> None:
    check_as_new(engine, TRAINING.values(), load(folder, deterministic=engine.deterministic, token_budget=64))


@pytest.mark.parametrize("rewards", [1.0, None, torch.tensor(1.0)])
def test_rewards_are_a_list(rewards: Any) -> None:
    one = group(sample(), sample())
    with pytest.raises(EngineError, match=r"^rewards: a list of 2 numbers is needed, not "):
        one.rewards = rewards
