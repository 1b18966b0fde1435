"""StepAgent: pairs, the loss over them, the discriminator and its rewards, against numbers worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from proactor.engine import EngineError, Group, ProactorError, Sample, TokenBatch
from proactor.environments.calls import canonical
from proactor.environments.protocol import Call
from proactor.methods.stepagent import (
    Action,
    Discriminator,
    ExpertStep,
    Inspected,
    PreferenceLoss,
    StepAgent,
    accuracy,
    examples_of,
    features,
    learn_epoch,
    pairs_of,
    preference_groups,
    reward_groups,
    step_reward,
)


def did(*contents: str) -> Action:
    """A turn that answers so; none: a turn without a call."""
    return tuple(canonical(Call("answer", content)) for content in contents)


def inspected(expert: str, *sampled: str, task: str = "t", turn: int = 0, seen: str = "") -> Inspected:
    """A state where the expert and the policy answer so; "" is a turn without a call."""
    step = ExpertStep(task, turn, [1, 2], [ord(c) for c in expert], did(expert), seen)
    samples = [Sample([1, 2], [ord(c) for c in text] or [0]) for text in sampled]
    return Inspected(step, samples, [did(text) if text else () for text in sampled])


def batch_of(samples: Sequence[Sample]) -> tuple[Tensor, TokenBatch]:
    """(recorded log-probabilities, batch) of samples as the trainer sees them."""
    old = torch.tensor([value for s in samples for value in s.policy_logprobs], dtype=torch.float64)
    owner = torch.tensor([i for i, s in enumerate(samples) for _ in s.token_ids])
    blank = torch.zeros(len(old))
    batch = TokenBatch(blank, old, old, blank, blank, owner, blank, blank, list(samples), blank)
    return old, batch


# -- pairs ---


def test_identical_actions_give_no_pair() -> None:
    same = inspected("7", "7", " 7 ")
    assert same.agreed == [True, True]
    assert preference_groups([same]) == [] and pairs_of([]) == 0


def test_each_other_action_is_paired_once_with_the_experts() -> None:
    one = inspected("7", "8", "7", "8", "9", "", "")
    [group] = preference_groups([one])
    assert [s.token_ids for s in group.samples] == [[ord("7")], [ord("8")], [ord("9")], [0]]
    assert pairs_of([group]) == 3 and group.tree == "t"
    assert one.agreed == [False, True, False, False, False, False]


def test_a_turn_without_a_call_never_agrees() -> None:
    step = ExpertStep("t", 0, [1], [2], ())
    assert Inspected(step, [Sample([1], [3])], [()]).agreed == [False]


def test_calls_are_compared_without_case_white_space_and_order() -> None:
    assert canonical(Call("action", " a  B", {"content": " a  B"})) == canonical(Call("action", "A b"))
    one = Call("book", arguments={"x": 1, "y": "C"})
    assert canonical(one) == canonical(Call("book", arguments={"y": "C", "x": 1}))
    assert canonical(one) != canonical(Call("book", arguments={"y": "C", "x": 2}))


# -- the loss ---


def test_the_loss_of_a_pair_worked_by_hand() -> None:
    """Log-ratios +0.2 and -0.3 with beta 0.1: -log sigmoid(0.05) = 0.66846."""
    chosen = Sample([1], [2, 3], policy_logprobs=[-1.0, -2.0])
    rejected = Sample([1], [4], policy_logprobs=[-1.5])
    group = Group([1], [chosen, rejected])
    loss = PreferenceLoss([group], beta=0.1, pairs=1)
    old, batch = batch_of([chosen, rejected])
    now = (old + torch.tensor([0.15, 0.05, -0.3])).requires_grad_()
    value, sums = loss(now, batch)
    assert value.item() == pytest.approx(0.66846, abs=5e-6) and loss.normalizer == 1.0
    assert float(sums["margin"]) == pytest.approx(0.05) and float(sums["wins"]) == 1
    value.backward()  # down the slope the expert's tokens become likelier, the other's less likely
    slope = 0.1 / (1 + math.exp(0.05))
    assert now.grad is not None and now.grad.tolist() == pytest.approx([-slope, -slope, slope])


def test_a_pair_is_not_taken_apart() -> None:
    [group] = preference_groups([inspected("7", "8")])
    loss = PreferenceLoss([group], 0.1, 1)
    group.samples[0].policy_logprobs = [-1.0]
    old, batch = batch_of(group.samples[:1])
    with pytest.raises(EngineError, match="split over two passes"):
        loss(old, batch)


# -- the discriminator ---


@pytest.mark.parametrize(
    ("probability", "form", "reward"),
    [(0.8, "logit", 1.3863), (0.5, "logit", 0.0), (0.8, "log", 1.6094), (0.2, "logit", -1.3863)],
)
def test_rewards_worked_by_hand(probability: float, form: str, reward: float) -> None:
    logit = math.log(probability / (1 - probability))
    config = StepAgent.model_validate({"form": form})
    assert step_reward(logit, config) == (pytest.approx(reward, abs=5e-5), False)


def test_rewards_are_cut_and_nan_is_refused() -> None:
    config = StepAgent(clip=2.0)
    assert step_reward(40.0, config) == (2.0, True) and step_reward(-40.0, config) == (-2.0, True)
    assert step_reward(800.0, StepAgent(form="log", clip=2.0)) == (2.0, True)
    with pytest.raises(ProactorError, match="logit is nan"):
        step_reward(math.nan, config)


def test_a_discriminator_that_separates_perfectly_saturates_and_is_counted() -> None:
    states = [inspected("7", "8", "9", turn=t) for t in range(3)]
    examples = examples_of(states)
    judge = Discriminator(rate=1.0)
    assert accuracy(judge, examples) == 0.0  # undecided is not right
    for _ in range(20):
        learn_epoch(judge, examples)
    assert accuracy(judge, examples) == 1.0
    groups, counts = reward_groups(judge, states, StepAgent(clip=1.0, guard=0.0))
    assert [group.rewards for group in groups] == [[-1.0, -1.0]] * 3
    assert counts == {"rewards_saturated": 6}


def test_the_guard_pays_the_experts_action() -> None:
    groups, counts = reward_groups(Discriminator(0.1), [inspected("7", "7", "8")], StepAgent(guard=0.25))
    assert groups[0].rewards == [0.25, 0.0] and counts == {"rewards_saturated": 0}


def test_of_a_policy_that_does_as_the_expert_no_discriminator_tells_anything() -> None:
    examples = examples_of([inspected("7", "7", "7")])
    judge = Discriminator(0.1)
    for _ in range(50):
        learn_epoch(judge, examples)
    assert abs(judge.logit(examples[0][0])) < 0.5 and accuracy(judge, examples) <= 0.5


def test_a_discriminator_goes_on_exactly_from_its_state() -> None:
    examples = examples_of([inspected("7", "8", seen="the result is 3"), inspected("5", "7")])
    whole, part = Discriminator(0.1), Discriminator(0.1)
    for _ in range(4):
        learn_epoch(whole, examples)
    for _ in range(2):
        learn_epoch(part, examples)
    part = Discriminator.load(0.1, json.loads(json.dumps(part.state())))
    for _ in range(2):
        learn_epoch(part, examples)
    assert np.array_equal(whole.weights, part.weights) and np.array_equal(whole.squares, part.squares)
    assert not Discriminator.load(0.1, {}).weights.any()


def test_the_same_action_is_judged_by_what_was_seen() -> None:
    """The expert answers what it was told; the policy answers the other."""
    states = [inspected("7", "8", seen="told 7", task="a"), inspected("8", "7", seen="told 8", task="b")]
    examples = examples_of(states)
    judge = Discriminator(0.5)
    for _ in range(30):
        learn_epoch(judge, examples)
    assert accuracy(judge, examples) == 1.0
    assert set(features(states[0].step, ())) != set(features(states[1].step, ()))


# -- a toy ---


def toy(policy: Tensor, state: int) -> Inspected:
    """Both actions of a state, "a" being the expert's, as often as the policy takes them in 20 draws."""
    often = round(20 * float(policy[state].softmax(0)[0]))
    return inspected("a", *("a" * often), *("b" * (20 - often)), task=str(state), seen=f"state {state}")


def test_200_alternations_bring_the_policy_to_the_expert() -> None:
    """Two states, two actions, GRPO's advantages of the discriminator's rewards, as a policy gradient."""
    policy, judge, config = torch.zeros(2, 2), Discriminator(0.1), StepAgent(guard=0.0)
    for _ in range(200):
        states = [toy(policy, state) for state in range(2)]
        learn_epoch(judge, examples_of(states))
        for state, group in enumerate(reward_groups(judge, states, config)[0]):
            rewards = torch.tensor(group.rewards)
            advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
            chances = policy[state].softmax(0)
            for sample, advantage in zip(group.samples, advantages, strict=True):
                slope = -chances
                slope[0 if sample.token_ids == [ord("a")] else 1] += 1
                policy[state] += 0.01 * advantage * slope
    assert float(policy.softmax(1)[:, 0].min()) > 0.95


def test_200_steps_over_pairs_bring_the_policy_to_the_expert() -> None:
    """The reference is the policy of the step before; a state without a pair gives none."""
    policy = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([policy], lr=1.0)
    for _ in range(200):
        logprobs = policy.log_softmax(1)
        groups = preference_groups([toy(policy.detach(), state) for state in range(2)])
        if not groups:
            break
        samples = [sample for group in groups for sample in group.samples]
        now = torch.stack([logprobs[int(g.tree), i] for g in groups for i in range(2)])  # type: ignore[call-overload]
        for sample, value in zip(samples, now.tolist(), strict=True):
            sample.policy_logprobs = [value]
        _, batch = batch_of(samples)
        value, _ = PreferenceLoss(groups, 0.1, pairs_of(groups))(now, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(policy.detach().softmax(1)[:, 0].min()) > 0.95
