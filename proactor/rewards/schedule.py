"""Coefficients that change during training, as functions of the update alone: a resumed run has the same.

That they follow the stage of training is confirmed [NOTES]; the shapes are [INFERRED, methods 1.6]. A
schedule spans the `TrainingProgress.total` updates of the GRPO stage: resuming with more steps stretches it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from proactor.rewards.options import RewardOptions


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Progress of training: ``update`` of ``total``, counted from 0. The paper's stages are stages of
    training, not of a dialogue [NOTES, methods 1.6].
    """

    update: int = 0
    total: int = 1


class Constant(RewardOptions):
    """The same number throughout."""

    schedule: Literal["constant"] = "constant"
    value: float

    def at(self, progress: TrainingProgress) -> float:
        """The coefficient at ``progress``."""
        return self.value


class Linear(RewardOptions):
    """From ``from`` to ``to`` over the first ``warm_up`` of training (share of updates), then constant."""

    schedule: Literal["linear"] = "linear"
    start: float = Field(default=0.0, alias="from")
    to: float
    warm_up: float = Field(default=0.5, ge=0, le=1)

    def at(self, progress: TrainingProgress) -> float:
        """The coefficient at ``progress``."""
        return self.start + ruler_weight(progress.update, self.warm_up * progress.total, self.to - self.start)


class Thirds(RewardOptions):
    """One number for each third of training: exploration, balance, conservative [NOTES]."""

    schedule: Literal["thirds"] = "thirds"
    values: tuple[float, float, float]

    def at(self, progress: TrainingProgress) -> float:
        """The coefficient at ``progress``."""
        if progress.total <= 0:
            return self.values[2]
        return self.values[min(2, 3 * progress.update // progress.total)]


class Rest(RewardOptions):
    """1 minus the other coefficients."""

    schedule: Literal["rest"] = "rest"


def _expand(value: Any) -> Any:
    """The mapping for which a number (a constant) or "rest" is short."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"schedule": "constant", "value": value}
    if value == "rest":
        return {"schedule": "rest"}
    if not isinstance(value, Mapping | RewardOptions):
        raise ValueError("a number, or a mapping with schedule: constant, linear or thirds")
    return value


Curve = Constant | Linear | Thirds
"""A coefficient that depends on the progress alone."""
Schedule = Annotated[Curve, Field(discriminator="schedule"), BeforeValidator(_expand)]
"""A coefficient in a config: a number, or a mapping with ``schedule``."""
Weight = Annotated[Curve | Rest, Field(discriminator="schedule"), BeforeValidator(_expand)]
"""The same, or "rest"."""


def ruler_weight(update: float, warm_up: float, highest: float = 0.3) -> float:
    """``lambda_k = highest * min(1, k / warm_up)`` at training update k.

    The rise to 0.3 is confirmed [NOTES], the linear shape is [INFERRED].
    """
    return highest * min(1.0, update / warm_up) if warm_up > 0 else highest


def adaptive_ruler(metric: float, ruler: float, weight: float) -> float:
    """``R(k) = (1 - lambda_k) R_metric + lambda_k R_RULER`` [NOTES]."""
    return (1 - weight) * metric + weight * ruler
