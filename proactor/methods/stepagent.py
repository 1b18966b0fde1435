"""StepAgent-style training: the agent beside an expert, step by step, at the expert's own states.

Inspection: at state s of an expert's episode the expert did a; the policy's action b is sampled there. Pairs
with b = a, compared as calls (`calls.canonical`), are dropped. Reflection has two forms:

- implicit:  L = -log sigmoid(beta [log pi(a|s)/ref(a|s) - log pi(b|s)/ref(b|s)]), whose implied reward is
  beta log(pi/ref). ref is the policy as it was when it was inspected, so it is new at each step of training.
- inverse:   D(s, x) = P(x is the expert's) learns from -log D(s, a) - mean over b of log(1 - D(s, b)); the
  reward of a sampled action is log D - log(1 - D), the logit of D ("log": -log(1 - D)), cut at ``clip``, and
  ``guard`` where b = a. The samples of one state are a group of GRPO.

Confirmed by the abstract: rewards step by step from comparing the agent's and the expert's actions; the two
stages; implicit rewards and inverse reinforcement learning with a discriminator. Its equations were not at
hand and no code was found: these are the standard forms (DPO, arXiv 2305.18290; GAIL, arXiv 1606.03476), and
every number is ours, the discriminator too: logistic, over hashed words of state and action.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from proactor.engine import (
    Config,
    Engine,
    EngineError,
    Group,
    ProactorError,
    Sample,
    Sampling,
    TokenBatch,
    ToolChat,
)
from proactor.environments.calls import canonical, read_call

Action = tuple[tuple[str, str, str], ...]
"""The calls of a turn, as `canonical`; empty where none was read."""
Features = npt.NDArray[np.int64]
"""Places of what is present, each once."""


class StepAgent(Config):
    """``reward``: how agent and expert are compared; ``beta`` of the implicit form.

    Of the inverse form: ``form`` of the reward and where it is cut (``clip``), ``guard`` for an action equal
    to the expert's, ``rate`` of the discriminator's steps, and the accuracy from which on it does not learn
    (``rest_at``): one that tells all apart says nothing of what is nearer.
    ``thoughts``: whether the expert writes them, as in `EpisodeSFT`.
    """

    reward: Literal["implicit", "inverse"] = "implicit"
    beta: float = Field(0.1, gt=0)
    form: Literal["logit", "log"] = "logit"
    clip: float = Field(5.0, gt=0)
    guard: float = Field(1.0, ge=0)
    rate: float = Field(0.1, gt=0)
    rest_at: float = Field(0.8, gt=0.5, le=1)
    thoughts: bool = True


# --- inspection ---


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """A state of an expert's episode, what the expert did there, and ``seen``: what it was answered last."""

    task: str
    turn: int
    prompt_ids: list[int]
    action_ids: list[int]
    action: Action
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Inspected:
    """An expert's step with the policy's ``samples`` there, and the action that each of them is."""

    step: ExpertStep
    samples: Sequence[Sample]
    actions: Sequence[Action]

    @property
    def agreed(self) -> list[bool]:
        """Whether each sample is the expert's action; one without a call is not."""
        return [bool(action) and action == self.step.action for action in self.actions]


def read_action(chat: ToolChat, ids: Sequence[int], stop: Sequence[str] = ()) -> Action:
    """The calls of a turn, in canonical form; empty where none can be read."""
    return tuple(canonical(read_call(call.name, call.arguments)) for call in chat.read(ids, stop).calls)


def expert_steps(
    task: str, episode: Sample, chat: ToolChat, decode: Callable[[list[int]], str]
) -> list[ExpertStep]:
    """The steps of an expert's episode (`ToolChat.sample`), each at the expert's own history."""
    steps, before = [], 0
    for turn, (start, end) in enumerate(episode.turns()):
        ids = episode.token_ids
        seen = decode(ids[before:start]) if turn else ""
        prompt, action = episode.prompt_ids + ids[:start], ids[start:end]
        steps.append(ExpertStep(task, turn, prompt, action, read_action(chat, action), seen))
        before = end
    return steps


def inspect(
    engine: Engine, chat: ToolChat, steps: Sequence[ExpertStep], sampling: Sampling, keys: Sequence[int]
) -> list[Inspected]:
    """The policy's actions at the expert's states; ``keys`` name their noise, as in `Engine.sample`."""
    groups = engine.sample([step.prompt_ids for step in steps], sampling, keys) if steps else []
    return [
        Inspected(step, group.samples, [read_action(chat, s.token_ids, sampling.stop) for s in group.samples])
        for step, group in zip(steps, groups, strict=True)
    ]


# --- reflection, implicit ---


def preference_groups(inspected: Iterable[Inspected]) -> list[Group]:
    """For each state where the policy did otherwise: the expert's action first, then each other action once.

    A state of which all samples are the expert's action has no pair and no group. Groups of a task share a
    tree: the expert's history is computed once.
    """
    groups = []
    for one in inspected:
        others: dict[object, Sample] = {}
        for sample, action, agreed in zip(one.samples, one.actions, one.agreed, strict=True):
            if not agreed:
                others.setdefault(action or tuple(sample.token_ids), sample)
        if others:
            prompt = one.step.prompt_ids
            taken = [one.step.action_ids, *(sample.token_ids for sample in others.values())]
            groups.append(Group(prompt, [Sample(prompt, list(ids)) for ids in taken], tree=one.step.task))
    return groups


def remember_reference(engine: Engine, groups: Sequence[Group]) -> None:
    """Record the log-probabilities of the present policy, the reference, as those that drew the samples."""
    placed = [(group, sample) for group in groups for sample in group.samples]
    values = engine.logprobs(
        [s.prompt_ids + s.token_ids for _, s in placed],
        [(len(s.prompt_ids), len(s.prompt_ids) + len(s.token_ids)) for _, s in placed],
        trees=[group.tree for group, _ in placed],
    )
    for (_, sample), logprobs in zip(placed, values, strict=True):
        sample.policy_logprobs = logprobs.tolist()


def pairs_of(groups: Iterable[Group]) -> int:
    """The number of pairs: of each group's first sample with each other."""
    return sum(len(group.samples) - 1 for group in groups)


class PreferenceLoss:
    """L summed over the pairs of `preference_groups`, a loss of the engine; ``pairs``: of all ranks.

    Log-ratios are to the recorded log-probabilities (`remember_reference`), summed over an action's tokens.
    Statistics: ``margin``, the implied reward of the expert's action less the agent's, and ``wins``, the
    pairs where it is above 0. Raises EngineError where the samples of a group are not in one tree.
    """

    needs_reference = False

    def __init__(self, groups: Sequence[Group], beta: float, pairs: int) -> None:
        self.beta, self.normalizer = beta, float(pairs)
        self._group_of = {id(sample): group for group in groups for sample in group.samples}

    def __call__(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of log-probabilities [N] in nats, and its statistics."""
        ratio = logprobs.new_zeros(len(batch.samples)).index_add(0, batch.sample, logprobs - batch.old)
        chosen, rejected = self._pairs(batch.samples)
        margin = self.beta * (ratio[chosen] - ratio[rejected])
        loss = -torch.nn.functional.logsigmoid(margin).sum()
        return loss, {"margin": margin.detach().sum(), "wins": (margin > 0).sum()}

    def _pairs(self, samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
        place = {id(sample): i for i, sample in enumerate(samples)}
        chosen, rejected = [], []
        for group in {id(g): g for g in (self._group_of[id(s)] for s in samples)}.values():
            first, *others = group.samples
            if any(id(sample) not in place for sample in group.samples):
                raise EngineError(
                    "stepagent: the actions of a state were split over two passes, and a pair is compared in "
                    "one; lower grpo.n or environment.play.sampling.max_tokens"
                )
            chosen += [place[id(first)]] * len(others)
            rejected += [place[id(other)] for other in others]
        return chosen, rejected


# --- reflection, inverse ---

PLACES = 4096
WORD = re.compile(r"[^\W\d_]+|-?\d+(?:\.\d+)?|[^\w\s]")
MARK = re.compile(r"<[^<>\s]*>")


def features(step: ExpertStep, action: Action) -> Features:
    """What the discriminator sees: words of the action, and each with the turn and with each word of the last
    observation. An action that could not be read is a word of its own.
    """
    done = [" ".join(("call", *parts)).strip() for parts in action] or ["unread"]
    words = {word for call in done for word in [call, *WORD.findall(call)]}
    seen = {f"turn {step.turn}", *WORD.findall(MARK.sub(" ", step.seen))}
    names = {"any", *words, *(f"{word} after {one}" for word in words for one in seen)}
    return np.array(sorted({place(name) for name in names}), dtype=np.int64)


def place(name: str) -> int:
    """Where a name stands among the `Features`; two names may share a place."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % PLACES


class Discriminator:
    """D(s, x) = sigmoid(sum of the weights of `features`), learned one example at a time by AdaGrad."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.weights, self.squares = np.zeros(PLACES), np.zeros(PLACES)

    @classmethod
    def load(cls, rate: float, state: Mapping[str, Any]) -> Discriminator:
        """That of a `state`; a new one where it is empty."""
        made = cls(rate)
        for place, weight, square in state.get("weights", ()):
            made.weights[place], made.squares[place] = weight, square
        return made

    def state(self) -> dict[str, Any]:
        """What `load` takes, JSON-able and exact."""
        used = np.flatnonzero(self.squares).tolist()
        return {"weights": [[i, float(self.weights[i]), float(self.squares[i])] for i in used]}

    def logit(self, seen: Features) -> float:
        """log D - log(1 - D)."""
        return float(self.weights[seen].sum())

    def learn(self, seen: Features, expert: bool, weight: float = 1.0) -> None:
        """A step down -log D of an expert's action, or -log(1 - D) of another, times ``weight``."""
        slope = weight * (_sigmoid(self.logit(seen)) - expert)
        self.squares[seen] += slope * slope
        self.weights[seen] -= self.rate * slope / np.sqrt(self.squares[seen] + 1e-12)


Example = tuple[Features, Sequence[Features]]
"""The features of the expert's action at a state, and of each of the policy's."""


def examples_of(inspected: Iterable[Inspected]) -> list[Example]:
    """What a discriminator learns from some states."""
    return [
        (features(one.step, one.step.action), [features(one.step, action) for action in one.actions])
        for one in inspected
    ]


def accuracy(judge: Discriminator, examples: Sequence[Example]) -> float:
    """The mean of the shares of expert's and of sampled actions that D tells rightly; 0 without any."""
    experts = [judge.logit(expert) > 0 for expert, _ in examples]
    agents = [judge.logit(agent) < 0 for _, sampled in examples for agent in sampled]
    return (sum(experts) / len(experts) + sum(agents) / len(agents)) / 2 if experts and agents else 0.0


def learn_epoch(judge: Discriminator, examples: Sequence[Example]) -> None:
    """One pass over the states; the sampled actions of a state weigh as much as the expert's."""
    for expert, sampled in examples:
        judge.learn(expert, True)
        for agent in sampled:
            judge.learn(agent, False, 1 / len(sampled))


def step_reward(logit: float, config: StepAgent) -> tuple[float, bool]:
    """The reward of an action from log D - log(1 - D), and whether it was cut at ``clip``."""
    if math.isnan(logit):
        raise ProactorError("stepagent: the discriminator's logit is nan")
    value = logit if config.form == "logit" else _softplus(logit)
    return min(max(value, -config.clip), config.clip), abs(value) >= config.clip


def reward_groups(
    judge: Discriminator, inspected: Iterable[Inspected], config: StepAgent
) -> tuple[list[Group], Counter[str]]:
    """A group for each state, with rewards; ``rewards_saturated``: those that were cut."""
    groups, counts = [], Counter[str](rewards_saturated=0)
    for one in inspected:
        for sample, action, agreed in zip(one.samples, one.actions, one.agreed, strict=True):
            reward, cut = step_reward(judge.logit(features(one.step, action)), config)
            sample.reward = reward + config.guard * agreed
            counts["rewards_saturated"] += cut
        groups.append(Group(one.step.prompt_ids, list(one.samples), tree=one.step.task))
    return groups, counts


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    """log(1 + e^x), which is -log(1 - D) of logit x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
