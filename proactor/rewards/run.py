"""Calling a reward and checking what it gives: one finite number a completion, or one line that says what is
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

from proactor.rewards.errors import RewardError
from proactor.rewards.turn import TurnReward, batch_parts, completion_text

RewardFunction = Callable[..., Sequence[float]]


def run_reward(
    name: str,
    function: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> list[dict[str, float]]:
    """Score completions: one dict each, "reward" and, for built-in rewards, its parts.

    RewardError names the reward and the completion when it raises, returns another number of values, or one
    that is not a finite number.
    """
    try:
        if isinstance(function, TurnReward):
            scored = batch_parts(function, completions, columns)
        else:
            scored = [
                {"reward": value} for value in function(prompts=prompts, completions=completions, **columns)
            ]
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error}".replace("\n", " ")
        ) from error
    return checked(name, scored, completions)


def checked(name: str, scored: list[dict[str, float]], completions: Sequence[Any]) -> list[dict[str, float]]:
    """``scored`` with "reward" as a float each. RewardError names the reward and the completion that has no
    finite one.
    """
    if len(scored) != len(completions):
        raise RewardError(f"reward {name!r} gave {len(scored)} values for {len(completions)} completions")
    for i, parts in enumerate(scored):
        value: object = parts["reward"]
        if not isinstance(value, SupportsFloat) or not math.isfinite(float(value)):
            raise RewardError(
                f"reward {name!r} gave {value!r} for completion {i}: {completion_text(completions[i])[:80]!r}"
            )
        parts["reward"] = float(value)
    return scored
