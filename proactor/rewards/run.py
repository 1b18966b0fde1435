"""Calling a reward and checking what it gives: one finite number a completion, or one line that says what is
wrong.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from proactor.dialogue.candidates import Candidates
from proactor.rewards.group import GroupReward
from proactor.rewards.options import RewardError
from proactor.rewards.turn import TurnReward, completion_text

RewardFunction = Callable[..., Sequence[float]]


def run_reward(
    name: str,
    reward: RewardFunction | TurnReward,
    candidates: Candidates,
    prompts: Callable[[], Sequence[Any]],
) -> list[dict[str, float]]:
    """Score the answers to one decision: one dict each, "reward" and, for built-in rewards, its parts.

    A built-in reward takes the candidates as they were parsed. A function of the user's own is called in
    TRL's signature: texts, ``prompts()`` (one a candidate) and the columns `dialogue`, `turn` and `board`.
    RewardError names the reward and the completion when it raises, returns another number of values, or one
    that is not a finite number.
    """
    n = len(candidates)
    try:
        if isinstance(reward, TurnReward):
            at = candidates.dialogue, candidates.turn
            scores = [reward.parts(*at, parsed, candidates.board) for parsed in candidates.parsed]
        else:
            columns = {
                "dialogue": [candidates.dialogue] * n,
                "turn": [candidates.turn] * n,
                "board": [candidates.board] * n,
            }
            values = reward(prompts=prompts(), completions=list(candidates.texts), **columns)
            scores = [{"reward": value} for value in values]
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error}".replace("\n", " ")
        ) from error
    return checked(name, scores, candidates.texts)


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
