"""Stops a run whose judge fails: a skipped update is no training, and a run of them is no success."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from proactor.config import GRPOStage
from proactor.rewards import RewardError


class JudgeWatch:
    """The judge's groups of the last `failed_window` steps in which it was asked.

    Kept over all ranks, from rows that are the same on each: every rank stops after the same step. A resumed
    run begins with an empty window.
    """

    def __init__(self, stage: GRPOStage, reason: Callable[[], str]) -> None:
        self.most, self.reason = stage.max_failed_share, reason
        self._steps: deque[tuple[float, float]] = deque(maxlen=stage.failed_window)

    def note(self, row: Mapping[str, Any], last: bool) -> None:
        """Take a step's row; ``last``: the stage ends with it.

        Raises RewardError, with the judge's last reason, when the window is full or the stage ends, and the
        judge gave no verdict on more than `max_failed_share` of its groups.
        """
        if not (groups := row.get("judge/groups", 0.0)):
            return
        self._steps.append((row.get("judge/dropped_groups", 0.0), groups))
        if len(self._steps) < (self._steps.maxlen or 0) and not last:
            return
        failed, asked = (sum(column) for column in zip(*self._steps, strict=True))
        if failed > self.most * asked:
            because = f": {reason}" if (reason := self.reason()) else ""
            raise RewardError(
                f"the judge gave no verdict on {failed:.0f} of {asked:.0f} groups in {len(self._steps)} "
                f"steps, more than grpo.max_failed_share={self.most:g}{because}; once it answers, --resume "
                "continues from the last save, and a higher share goes on without it"
            )
