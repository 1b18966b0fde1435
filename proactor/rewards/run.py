"""Calling a reward and checking what it gives: one finite number a completion, or one line that says what is
wrong.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from proactor.rewards.group import GroupReward
from proactor.rewards.options import RewardError
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


def own_reward(spec: str) -> Any:
    """What `module:attribute` names, found in the working directory too: a callable, or a `GroupReward`.
    RewardError says what is wrong.
    """
    module_name, _, attribute = spec.partition(":")
    found = getattr(_import(module_name, spec), attribute, None)
    if not callable(found) and not isinstance(found, GroupReward):
        raise RewardError(f"reward {spec!r}: {module_name} has no function {attribute!r}")
    return found


def _import(module: str, spec: str) -> Any:
    """Import with the working directory on the path, as `python -m` would have it; a console script does
    not.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RewardError(f"reward {spec!r}: {error}") from error
    finally:
        sys.path.remove(here)
