"""UserRL's turn credit and trajectory scores: how the rewards of an episode's turns become advantages.

Confirmed by UserRL's code (``verl/trainer/ppo/core_algos.py``); what the paper prints differs and is said at
each function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GAMMA = 0.8
"""Discount of reward-to-go, in credits and scores."""


def equalized(rewards: Sequence[float]) -> list[float]:
    """The same credit for each turn."""
    return [1.0] * len(rewards)


def reward_to_go(rewards: Sequence[float], gamma: float = GAMMA) -> list[float]:
    """The discounted sum of a turn's reward and those after it (R2G)."""
    credits, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        credits.append(later)
    return credits[::-1]


def exponential(rewards: Sequence[float], k: float = 2.0) -> list[float]:
    """Rewards of 0 to 1 mapped to 0.5 to 1, small ones apart (EM); 4 decimal places, as in UserRL's code."""
    return [round(0.5 + 0.5 * (1 - math.exp(-k * r)) / (1 - math.exp(-k)), 4) for r in rewards]
