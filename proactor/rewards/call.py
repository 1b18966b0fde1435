"""Calls of a reward on the answers to one decision: one finite number per answer, or a `RewardError`.

A reward is a built-in one, or a function of the user's own, imported by its `module:attribute`.
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
from proactor.rewards.turn import Content, TurnReward

RewardFunction = Callable[..., Sequence[float]]
"""A reward in TRL's signature, `(prompts, completions, **columns)`: one number per completion."""


def run_reward(
    name: str,
    reward: RewardFunction | TurnReward,
    candidates: Candidates,
    prompts: Callable[[], Sequence[Content]],
) -> list[dict[str, float]]:
    """Score every answer of ``candidates``: one dict each, "reward" and, for built-in rewards, its parts.

    A built-in reward takes the answers as they were parsed. A function of the user's own is called in TRL's
    signature: texts, ``prompts()`` (one per answer) and the columns `dialogue`, `turn` and `board`.

    Raises RewardError, naming the reward and the answer, when the user's function raises, returns another
    number of values, or returns one that is not a finite number. An exception of a built-in reward is a bug
    and passes.
    """
    if isinstance(reward, TurnReward):
        dialogue, turn, board = candidates.dialogue, candidates.turn, candidates.board
        scores = [reward.parts(dialogue, turn, parsed, board) for parsed in candidates.parsed]
    else:
        scores = [{"reward": value} for value in _call_function(name, reward, candidates, prompts())]
    return validate_scores(name, scores, candidates.texts)


def _call_function(
    name: str, function: RewardFunction, candidates: Candidates, prompts: Sequence[Content]
) -> list[float]:
    """Call a user's reward function in TRL's signature. RewardError when it raises."""
    n = len(candidates)
    columns = {
        "prompts": prompts,
        "completions": list(candidates.texts),
        "dialogue": [candidates.dialogue] * n,
        "turn": [candidates.turn] * n,
        "board": [candidates.board] * n,
    }
    try:
        return list(function(**columns))
    except RewardError:
        raise
    except (Exception, SystemExit) as error:  # an exit would end the run as if all were well
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error}".replace("\n", " ")
        ) from error


def validate_scores(
    name: str, scores: list[dict[str, float]], texts: Sequence[str]
) -> list[dict[str, float]]:
    """``scores`` with every "reward" as a float, changed in place.

    Raises RewardError, naming the reward and the answer, where one is missing or not a finite number.
    """
    if len(scores) != len(texts):
        raise RewardError(f"reward {name!r} gave {len(scores)} values for {len(texts)} completions")
    for i, parts in enumerate(scores):
        value: object = parts["reward"]
        try:
            score = float(value) if isinstance(value, SupportsFloat) else math.nan
        except (TypeError, ValueError, OverflowError):  # an array, say, or an integer beyond all floats
            score = math.nan
        if not math.isfinite(score):
            raise RewardError(f"reward {name!r} gave {value!r:.80} for completion {i}: {texts[i][:80]!r}")
        parts["reward"] = score
    return scores


def import_reward(spec: str) -> Any:
    """Import `module:attribute`, also from the working directory: a `RewardFunction` or a `GroupReward`.

    Raises RewardError where the module cannot be imported, or has no such callable or `GroupReward`.
    """
    module_name, _, attribute = spec.partition(":")
    reward = getattr(_import_module(module_name, spec), attribute, None)
    if not callable(reward) and not isinstance(reward, GroupReward):
        raise RewardError(f"reward {spec!r}: {module_name} has no function {attribute!r}")
    return reward


def _import_module(module: str, spec: str) -> Any:
    """Import with the working directory on the path. `python -m` puts it there, a console script does not."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise RewardError(f"reward {spec!r}: {module!r} is no name of a module")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RewardError(f"reward {spec!r}: {error}") from error
    except SystemExit as error:
        raise RewardError(f"reward {spec!r}: the module exits when it is imported ({error})") from error
    finally:
        sys.path.remove(here)
