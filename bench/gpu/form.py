"""A peer of an operation: a library's form of the same computation, ready to time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from proactor.kernels.op import Arguments, Outputs


@dataclass(frozen=True, slots=True)
class Form:
    """A call ready to time. ``leaves``: inputs that get gradients; ``view``: its result in our layout."""

    call: Callable[[], Any]
    leaves: Sequence[Tensor] = ()
    view: Callable[[Any], Outputs] = lambda out: out


@dataclass(frozen=True, slots=True)
class Peer:
    """A library's form. ``build`` returns None where it cannot take the arguments; needs ``package``."""

    name: str
    build: Callable[[Arguments], Form | None]
    package: str = "torch"
    gradients: bool = True

    @property
    def absent(self) -> str:
        """Why it cannot run here; empty if it can."""
        root, _, rest = self.package.partition(".")
        if importlib.util.find_spec(root) is None or (
            rest and importlib.util.find_spec(self.package) is None
        ):
            return f"{self.package} is not installed"
        return ""
