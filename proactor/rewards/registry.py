"""How a config names a reward: from the registry, or `module:function` in TRL's signature.

A reward function takes `(prompts, completions, **columns)` and returns one float a completion; completions
are texts or message lists. Columns of the built-in ones, one value a completion: `dialogue` (Dialogue),
`turn` (int), `board` (Board, optional).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proactor.rewards.family import (
    adaptive_metric,
    adaptive_ruler_reward,
    custom_ruler,
    general_ruler,
    max_rac,
    mixture,
    rac,
    weighted_metric,
)
from proactor.rewards.group import GroupReward
from proactor.rewards.options import RewardError
from proactor.rewards.run import RewardFunction, own_reward
from proactor.rewards.turn import TurnReward
from proactor.rewards.utility import Utility

Reward = RewardFunction | GroupReward

REGISTRY: dict[str, Callable[..., TurnReward]] = {
    "weighted_metric": weighted_metric,
    "rac": rac,
    "max_rac": max_rac,
}
"""Metric rewards by the name a config uses; the options of a config go to the factory. All score single
decisions on the scale of RAC.
"""

FAMILY: dict[str, Callable[..., TurnReward | GroupReward]] = {
    **REGISTRY,
    "adaptive_metric": adaptive_metric,
    "general_ruler": general_ruler,
    "custom_ruler": custom_ruler,
    "adaptive_ruler": adaptive_ruler_reward,
    "utility": Utility,
    "mixture": mixture,
}
"""Every built-in reward."""


def load_reward(spec: str, options: Mapping[str, Any] | None = None) -> Any:
    """A built-in by name, or one's own as `module:function` (also from the working directory): a
    `RewardFunction` or a `GroupReward`.

    RewardError says what is wrong.
    """
    options = dict(options or {})
    if spec in FAMILY:
        return FAMILY[spec](**options)
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise RewardError(f"reward {spec!r} is unknown: one of {', '.join(FAMILY)}, or module:function")
    if options:
        raise RewardError(f"reward {spec!r}: options {sorted(options)} are only taken by built-in rewards")
    return own_reward(spec)
