"""Rewards of one's own: any callable, or group reward, named as `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from proactor.rewards.errors import RewardError
from proactor.rewards.group import GroupReward


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
