"""UserRL's turn credit and trajectory scores: how the rewards of an episode's turns become advantages.

    S_i = score of episode i (mean, sum or reward-to-go);  A_i = (S_i - mean) / (unbiased std + 1e-6)
    A_t = A_i w_t n / sum(w)     w: the turn's credit on each trained token; n: tokens with w other than 0

The mean of A_t over the tokens with a credit is A_i. Confirmed by UserRL's code
(``verl/trainer/ppo/core_algos.py``); what the paper prints differs and is said at each function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from proactor.engine import Config, Convention, ProactorError, group_advantages
from proactor.environments.episode import Episode

GAMMA = 0.8
"""Discount of reward-to-go, in credits and scores."""


class TurnCredit(Config):
    """Which credit a turn gets and which score an episode.

    The defaults are the paper's best pair; UserRL's script runs "equalized" with "mean", InfoPO "equalized"
    with "sum". ``advantages``: the group's normalisation (`group_advantages`); "verl" is UserRL's.
    """

    turns: Literal["equalized", "r2g", "em"] = "equalized"
    score: Literal["mean", "sum", "r2g"] = "r2g"
    gamma: float = Field(GAMMA, ge=0, le=1)
    k: float = Field(2.0, gt=0)
    advantages: Convention = "verl"

    def weights(self, rewards: Sequence[float]) -> list[float]:
        """The credit of each turn."""
        if self.turns == "r2g":
            return reward_to_go(rewards, self.gamma)
        return equalized(rewards) if self.turns == "equalized" else exponential(rewards, self.k)

    def scored(self, rewards: Sequence[float]) -> float:
        """The score of an episode with these rewards; 0 without turns."""
        if self.score == "mean":
            return mean_score(rewards)
        return sum(rewards) if self.score == "sum" else next(iter(reward_to_go(rewards, self.gamma)), 0.0)


def equalized(rewards: Sequence[float]) -> list[float]:
    """The same credit for each turn."""
    return [1.0] * len(rewards)


def reward_to_go(rewards: Sequence[float], gamma: float = GAMMA) -> list[float]:
    """The discounted sum of a turn's reward and those after it (R2G); the first is the episode's score."""
    credits, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        credits.append(later)
    return credits[::-1]


def exponential(rewards: Sequence[float], k: float = 2.0) -> list[float]:
    """Rewards of 0 to 1 mapped to 0.5 to 1, small ones apart (EM); 4 decimal places, as in UserRL's code."""
    return [round(0.5 + 0.5 * (1 - math.exp(-k * r)) / (1 - math.exp(-k)), 4) for r in rewards]


def mean_score(rewards: Sequence[float]) -> float:
    """The mean reward of a turn to 4 decimal places, 0 without turns: UserRL's code calls it "Sum".

    The paper and InfoPO's code add the rewards up.
    """
    return round(sum(rewards) / len(rewards), 4) if rewards else 0.0


def token_advantages(group: Sequence[Episode], credit: TurnCredit) -> list[list[float]]:
    """The advantage of each token of each episode's sample, 0 for what is not trained.

    Raises ProactorError, naming the episode, for a reward that is not finite and for credits that add up to
    0 or less.
    """
    values = advantages([credit.scored(finite_rewards(e)) for e in group], credit)
    return [
        over_tokens(episode, [value * factor for factor in turn_factors(episode, credit)])
        for episode, value in zip(group, values, strict=True)
    ]


def advantages(scores: Sequence[float], credit: TurnCredit) -> list[float]:
    """A_i of the scores of a group; none for no episode."""
    return group_advantages(scores, credit.advantages) if scores else []


def turn_factors(episode: Episode, credit: TurnCredit) -> list[float]:
    """w_t n / sum(w) of each turn, from the rewards as the environment gave them.

    All are 0 where no token has a credit, as in UserRL's code. Raises ProactorError, naming the episode, for
    credits that add up to 0 or less over the trained tokens: they would turn the advantage's sign around.
    """
    weights, counts = credit.weights(finite_rewards(episode)), trained_tokens(episode)
    credited = sum(count for weight, count in zip(weights, counts, strict=True) if weight)
    total = math.fsum(weight * count for weight, count in zip(weights, counts, strict=True))
    if not credited:
        return [0.0] * len(weights)
    if not total > 0:
        raise ProactorError(
            f"{named(episode)}: turn credits ({credit.turns}) add up to {total:g} over its tokens, and "
            "should to more than 0"
        )
    return [weight * credited / total for weight in weights]


def trained_tokens(episode: Episode) -> list[int]:
    """The number of trained tokens of each turn's action."""
    mask = episode.sample.trained_mask()
    return [sum(mask[slice(*turn.action)]) for turn in episode.turns]


def over_tokens(episode: Episode, values: Sequence[float]) -> list[float]:
    """One value a turn, on each trained token of its action; 0 for the other tokens of the sample."""
    mask, out = episode.sample.trained_mask(), [0.0] * len(episode.sample.token_ids)
    for turn, value in zip(episode.turns, values, strict=True):
        for place in range(*turn.action):
            out[place] = value if mask[place] else 0.0
    return out


def finite_rewards(episode: Episode) -> list[float]:
    """The episode's rewards. Raises ProactorError, naming episode and turn, for one that is not finite."""
    for number, reward in enumerate(episode.rewards, 1):
        if not math.isfinite(reward):
            raise ProactorError(f"{named(episode)}: the reward of turn {number} is {reward}")
    return episode.rewards


def named(episode: Episode) -> str:
    """An episode in an error."""
    return f"episode of {episode.gym} {episode.task!r}, seed {episode.seed}"
