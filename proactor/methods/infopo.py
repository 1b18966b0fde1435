"""InfoPO: information gain by masked feedback, as an advantage beside that of the outcome.

    r_t = mean over tokens y of a_{t+1} of  log p(y | h, a_t, o_t, y<) - log p(y | h, a_t, placeholder, y<)
    A   = A_out + beta exp(-decay epoch) g m A_info,   g = sigmoid(-sigma / temperature)

r_t is credited to the action that obtained the feedback o_t. The placeholder takes the feedback's place token
by token: cut, or its last token repeated, so that no position moves. sigma: the unbiased deviation of the
group's scores, 1 for a group of one. A_info and m have two forms:

- ``info_norm: turn`` (the paper's): r_t less the group's mean over its valid turns, by the unbiased
  deviation; m = 1.
- ``info_norm: token`` (the code's): r_t / |a_t| on each token of a_t, normalised over the group's tokens with
  a value other than 0; with ``bounded``, m = min(1, max(std A_out, 1) / std A_info) over the batch's tokens.

A single value gets 0. Formulas of the gain and the code form: confirmed by InfoPO's code; the paper form is
second hand. The mean of r_t is no estimate of mutual information alone: see `information_gap`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from proactor.engine import Config, Engine, ProactorError, group_advantages
from proactor.environments.episode import Episode, Span
from proactor.methods import turn_credit
from proactor.methods.turn_credit import TurnCredit, finite_rewards, over_tokens, trained_tokens
from proactor.scoring.arrays import Array

PLACEHOLDER = "No information found."
"""InfoPO's own; encode it without special tokens."""
Gains = Sequence[float | None]
"""r_t of each turn of an episode, in nats a token; None for a turn that has none."""
Spreads = tuple[Counter[float], Counter[float]]
Gather = Callable[[Spreads], Sequence[Spreads]]
"""How often each value of A_out and of A_info occurs on this rank, and then on each."""


class InfoPO(Config):
    """Weight and form of the information advantage; the defaults are the paper form with the code's numbers.

    ``credit``: the outcome's part, and the scores that the gate looks at.
    """

    beta: float = Field(0.5, ge=0)
    decay: float = Field(0.0, ge=0)
    temperature: float = Field(0.5, gt=0)
    info_norm: Literal["turn", "token"] = "turn"
    bounded: bool = False
    credit: TurnCredit = TurnCredit(turns="equalized", score="sum")


CODE_FORM = InfoPO(info_norm="token", bounded=True)


# --- the gain ---


def masked(observation: int, placeholder: Sequence[int]) -> list[int]:
    """``observation`` ids in place of one of that length: the placeholder's, cut or with the last repeated.

    Raises ProactorError for an empty placeholder.
    """
    if not placeholder:
        raise ProactorError("InfoPO: the placeholder has no token")
    return [*placeholder[:observation], *[placeholder[-1]] * (observation - len(placeholder))]


def information_gain(given: Sequence[float], hidden: Sequence[float]) -> float:
    """r of one turn: the mean difference of the next action's log-probabilities, with the feedback and with
    the placeholder. Nats a token; may be negative.
    """
    return math.fsum(a - b for a, b in zip(given, hidden, strict=True)) / len(given)


def feedback_span(episode: Episode, turn: int, frame: tuple[int, int] = (0, 0)) -> Span | None:
    """The tokens of turn ``turn`` (from 0) that are masked; None where the turn is not valid.

    Valid: its feedback is not empty, and it and the next turn have tokens. ``frame``: tokens with which the
    chat template opens and closes an observation; they stay.
    """
    if turn + 1 >= len(episode.turns) or not episode.turns[turn].feedback:
        return None
    start, end = episode.turns[turn].observation
    span = start + frame[0], end - frame[1]
    actions = episode.turns[turn].action, episode.turns[turn + 1].action
    return span if span[0] < span[1] and all(a < b for a, b in actions) else None


def information_gains(
    engine: Engine, episodes: Sequence[Episode], placeholder: Sequence[int], frame: tuple[int, int] = (0, 0)
) -> list[list[float | None]]:
    """r_t of each turn of each episode under the engine's present policy, at temperature 1, no gradient.

    One pass over trees. An episode is computed once, where a pass holds it, and each valid turn adds
    |o_t| + |a_{t+1}| rows at most. What the sampler recorded serves as the unmasked part where it is of
    temperature 1 and of this policy; otherwise a turn adds another |a_{t+1}| rows. Feedback that equals the
    placeholder has a gain of exactly 0 and no pass. Raises EngineError for what cannot be scored.
    """
    gains: list[list[float | None]] = [[None] * len(episode.turns) for episode in episodes]
    hidden, given = _Passes(), _Passes()
    recorded: dict[tuple[int, int], list[float]] = {}
    for i, episode in enumerate(episodes):
        ids, before = episode.sample.token_ids, len(episode.sample.prompt_ids)
        for t in range(len(episode.turns)):
            span = feedback_span(episode, t, frame)
            if span is None:
                continue
            start, end = span
            edited = [*ids[:start], *masked(end - start, placeholder), *ids[end:]]
            if edited == ids:
                gains[i][t] = 0.0
                continue
            begin, stop = episode.turns[t + 1].action
            where = before + begin, before + stop
            hidden.add((i, t), [*episode.sample.prompt_ids, *edited[:stop]], where)
            if _current(engine, episode, t + 1):
                recorded[i, t] = episode.logprobs(episode.turns[t + 1])
            else:
                given.add((i, t), [*episode.sample.prompt_ids, *ids[:stop]], where)
    keys = [*hidden.keys, *given.keys]
    values = engine.logprobs(
        hidden.sequences + given.sequences, hidden.spans + given.spans, trees=[i for i, _ in keys]
    )
    scored = [v.tolist() for v in values]
    recorded |= zip(given.keys, scored[len(hidden.keys) :], strict=True)
    for (i, t), without in zip(hidden.keys, scored, strict=False):
        gains[i][t] = information_gain(recorded[i, t], without)
    return gains


class _Passes:
    """Sequences to score, with the place of each."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int]] = []
        self.sequences: list[list[int]] = []
        self.spans: list[Span] = []

    def add(self, key: tuple[int, int], ids: list[int], span: Span) -> None:
        self.keys.append(key)
        self.sequences.append(ids)
        self.spans.append(span)


def _current(engine: Engine, episode: Episode, turn: int) -> bool:
    """Whether there are log-probabilities of a turn, of the present policy at temperature 1."""
    start, end = episode.turns[turn].action
    values = episode.logprobs(episode.turns[turn])
    recorded = len(values) == end - start and not any(map(math.isnan, values))
    versions = set(episode.versions(episode.turns[turn]))
    return recorded and episode.sample.temperature == 1.0 and versions == {engine.policy_version}


# --- from gains to advantages ---


def gate(deviation: float, temperature: float) -> float:
    """sigmoid(-deviation / temperature): 0.5 for a group of equal scores, towards 0 as they spread."""
    return 1.0 / (1.0 + math.exp(min(deviation / temperature, 700.0)))


def deviation(scores: Sequence[float]) -> float:
    """The unbiased deviation of a group's scores; 1 for a group of one."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 1.0


def information_advantages(
    gains: Sequence[Gains], lengths: Sequence[Sequence[int]], info_norm: Literal["turn", "token"]
) -> list[list[float]]:
    """A_info of each turn of a group's episodes; 0 for a turn without a gain.

    ``lengths``: trained tokens of each action.
    """
    turns = [(i, t) for i, of_episode in enumerate(gains) for t in range(len(of_episode))]
    values: dict[tuple[int, int], tuple[float, int]] = {}  # of each turn, and how often it counts
    for i, t in turns:
        gain, length = gains[i][t], lengths[i][t]
        if gain is None:
            continue
        if info_norm == "turn":
            values[i, t] = gain, 1
        elif gain and length:
            values[i, t] = gain / length, length
    flat = [value for value, count in values.values() for _ in range(count)]
    normal = group_advantages(flat, "verl") if len(flat) > 1 else [0.0] * len(flat)
    out, at = [[0.0] * len(of_episode) for of_episode in gains], 0
    for (i, t), (_, count) in values.items():
        out[i][t], at = normal[at], at + count
    return out


def token_advantages(
    groups: Sequence[Sequence[Episode]],
    gains: Sequence[Sequence[Gains]],
    config: InfoPO,
    epoch: float = 0.0,
    gather: Gather = lambda mine: [mine],
) -> list[list[list[float]]]:
    """A of each token of each episode's sample, by group; 0 for what is not trained.

    ``gains``: r_t by group, episode and turn. ``gather``: as `Engine.gather`, where the batch is on several
    ranks; every one of them calls this. Raises as `turn_credit.token_advantages`.
    """
    outcome = [turn_credit.token_advantages(group, config.credit) for group in groups]
    information = []
    for group, of_group in zip(groups, gains, strict=True):
        lengths = [trained_tokens(episode) for episode in group]
        turns = information_advantages(of_group, lengths, config.info_norm)
        weight = gate(deviation([config.credit.scored(finite_rewards(e)) for e in group]), config.temperature)
        information.append((weight, [over_tokens(e, t) for e, t in zip(group, turns, strict=True)]))
    scale = config.beta * math.exp(-config.decay * epoch)
    if config.bounded:
        scale *= _bound(groups, outcome, [tokens for _, tokens in information], gather)
    return [
        [
            [a + scale * weight * b for a, b in zip(out, info, strict=True)]
            for out, info in zip(of_group, tokens, strict=True)
        ]
        for of_group, (weight, tokens) in zip(outcome, information, strict=True)
    ]


def _bound(
    groups: Sequence[Sequence[Episode]],
    outcome: Sequence[Sequence[Sequence[float]]],
    information: Sequence[Sequence[Sequence[float]]],
    gather: Gather,
) -> float:
    """m = min(1, max(std A_out, 1) / std A_info) over the trained tokens of all groups of all ranks."""

    def counted(values: Sequence[Sequence[Sequence[float]]]) -> Counter[float]:
        return Counter(
            value
            for group, of_group in zip(groups, values, strict=True)
            for episode, tokens in zip(group, of_group, strict=True)
            for value, on in zip(tokens, episode.sample.trained_mask(), strict=True)
            if on
        )

    ranks = gather((counted(outcome), counted(information)))
    spread, most = (_spread(sum(of_ranks, Counter())) for of_ranks in zip(*ranks, strict=True))
    return min(1.0, max(spread, 1.0) / most) if most > 0 else 1.0


def _spread(values: Counter[float]) -> float:
    """The unbiased deviation of values that occur so often, to the bit whatever their order."""
    total = values.total()
    if total < 2:
        return 0.0
    mean = math.fsum(value * count for value, count in values.items()) / total
    return math.sqrt(math.fsum(count * (v - mean) ** 2 for v, count in values.items()) / (total - 1))


# --- what the gain measures ---


@dataclass(frozen=True, slots=True)
class InformationGap:
    """``gain``: mean r; ``mutual_information`` I(O; A' | h); ``excess``: gain - mutual_information. Nats."""

    gain: float
    mutual_information: float
    excess: float


def information_gap(observations: Array, actions: Array, placeholder: Array) -> InformationGap:
    """The mean of r over observations and next actions, beside the mutual information of the two.

    ``observations`` [O]: p(o | h); ``actions`` [O, A]: p(a' | h, o); ``placeholder`` [A]: p(a' | h,
    placeholder). With the marginal p(a') = sum_o p(o) p(a' | o):

        mean r = sum_o p(o) KL(p(a' | o) || placeholder) = I(O; A') + KL(marginal || placeholder)

    so r is too large by the second term: the distance of the policy under the placeholder from the marginal.
    Infinite where the placeholder rules out an action that occurs. Raises ProactorError for what is no
    distribution.
    """
    p, given, hidden = (np.asarray(x, float) for x in (observations, actions, placeholder))
    if p.ndim != 1 or given.shape != (*p.shape, *hidden.shape) or hidden.ndim != 1:
        raise ProactorError(
            f"information gap: shapes {p.shape}, {given.shape}, {hidden.shape} are not [O], [O, A], [A]"
        )
    for name, x in (("observations", p), ("actions", given), ("placeholder", hidden)):
        if not ((x >= 0).all() and np.allclose(x.sum(axis=-1), 1.0, rtol=0, atol=1e-9)):
            raise ProactorError(f"information gap: {name} are no probabilities that add up to 1")
    marginal = p @ given
    gain = float(p @ _divergence(given, hidden))
    information = float(p @ _divergence(given, marginal))
    return InformationGap(gain, information, float(_divergence(marginal, hidden)))


def _divergence(p: Array, q: Array) -> Array:
    """KL(p || q) over the last axis, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    total: Array = terms.sum(axis=-1)
    return total
