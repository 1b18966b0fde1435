"""`RewardError`, the refusal of every reward."""

from __future__ import annotations

from proactor.engine import ProactorError


class RewardError(ProactorError):
    """A reward that is unknown, has wrong options, raises, or gives no finite number for a completion."""
