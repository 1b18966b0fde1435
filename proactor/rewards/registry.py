"""A reward by the name that a config uses: a built-in one, or ``module:attribute`` of the user's own.

A user's function takes ``(prompts, completions, **columns)``, TRL's signature, and returns one float per
completion. Columns, one value per completion: ``dialogue`` (Dialogue), ``turn`` (int), ``board`` (Board).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proactor.rewards.call import RewardFunction, import_reward
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
from proactor.rewards.turn import TurnReward
from proactor.rewards.utility import Utility

Reward = RewardFunction | GroupReward

REGISTRY: dict[str, Callable[..., TurnReward]] = {
    "weighted_metric": weighted_metric,
    "rac": rac,
    "max_rac": max_rac,
}
"""Metric rewards by name: factories that take the config's options. All score decisions on RAC's scale."""

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
    """The reward that ``spec`` names: a `TurnReward`, a `GroupReward`, or a user's `RewardFunction`.

    ``spec``: a name of `FAMILY`, or ``module:attribute``, found in the working directory too.

    Raises RewardError for an unknown name, and for options that the reward does not take.
    """
    options = dict(options or {})
    if spec in FAMILY:
        return FAMILY[spec](**options)
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise RewardError(f"reward {spec!r} is unknown: one of {', '.join(FAMILY)}, or module:function")
    if options:
        raise RewardError(f"reward {spec!r}: options {sorted(options)} are only taken by built-in rewards")
    return import_reward(spec)
