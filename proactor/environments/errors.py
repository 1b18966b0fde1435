"""What environments refuse."""

from __future__ import annotations

from proactor.engine import ProactorError


class GymError(ProactorError):
    """An environment that cannot be had: an unknown gym, task or split, absent data, a missing package."""


class EpisodeOver(GymError):
    """A call to an environment whose episode has ended."""
