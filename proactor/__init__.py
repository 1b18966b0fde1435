"""A training engine for proactive agents.

`proactor.engine` loads, samples and trains a model; `proactor.kernels` holds its operations, one file each or
a few with a common prefix; the modules beside them turn dialogues into opportunity windows, rewards and
reports. `Agent` is a trained run at work. Importing this package imports nothing heavy and changes no global
state: `Agent` is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proactor.agent import Agent as Agent

__version__ = "0.1.0"
__all__ = ["Agent", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Agent":
        return import_module("proactor.agent").Agent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
