"""Rewards that compare the answers of one group, asynchronously, and may have nothing to say about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from proactor.dialogue.candidates import Candidates, Stage
from proactor.dialogue.catalog import Catalog

if TYPE_CHECKING:
    from proactor.engine import Engine

Scored = list[dict[str, float]] | None
"""One dict a candidate, "reward" and its parts; None: the group is dropped."""


@runtime_checkable
class GroupReward(Protocol):
    """A reward of training only: evaluations use a `TurnReward`, never a training judge.

    ``concurrent``: may it run while the policy is being sampled? Then `score` is called for each group as it
    ends, in the event loop of another thread; otherwise `score_all`, once, after sampling. Scores may not
    depend on the order in which groups come.
    ``judged``: names of the parts that a judge gives. ``counters``: running totals of events.
    """

    @property
    def concurrent(self) -> bool: ...
    @property
    def judged(self) -> tuple[str, ...]: ...
    @property
    def counters(self) -> Counter[str]: ...

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take note of the engine and of all tools; called once, after the model is loaded."""

    def coefficients(self, stage: Stage) -> dict[str, float]:
        """The weights in force, by the name of the part they weigh."""

    async def score(self, candidates: Candidates, stage: Stage) -> Scored:
        """Score one group."""

    async def score_all(self, groups: Sequence[Candidates], stage: Stage) -> list[Scored]:
        """Score many at once, in their order."""
