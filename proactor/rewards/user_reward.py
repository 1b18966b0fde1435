"""A user's own reward, found by its ``module:attribute``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from proactor.rewards.errors import RewardError
from proactor.rewards.group import GroupReward

RewardFunction = Callable[..., Sequence[float]]
"""A reward in TRL's signature, `(prompts, completions, **columns)`: one number per completion."""


def import_reward(spec: str) -> Any:
    """Import ``module:attribute``, also from the working directory: a `RewardFunction` or a `GroupReward`.

    Raises RewardError where the module cannot be imported, or has no such callable or `GroupReward`.
    """
    module_name, _, attribute = spec.partition(":")
    reward = getattr(_import_module(module_name, spec), attribute, None)
    if not callable(reward) and not isinstance(reward, GroupReward):
        raise RewardError(f"reward {spec!r}: {module_name} has no function {attribute!r}")
    return reward


def _import_module(module: str, spec: str) -> Any:
    """Import with the working directory on the path. `python -m` puts it there, a console script does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RewardError(f"reward {spec!r}: {error}") from error
    finally:
        sys.path.remove(here)
