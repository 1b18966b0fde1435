"""`GroupReward`: a reward that compares the answers of a group, asynchronously, and may drop the group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog
from proactor.rewards.schedule import TrainingProgress

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine

GroupScores = list[dict[str, float]] | None
"""One dict per candidate, "reward" and its parts by name; None where the group is dropped."""


@runtime_checkable
class GroupReward(Protocol):
    """A reward for training only. Evaluations use a `TurnReward`: a judge must not grade what it trained.

    Scores may not depend on the order in which groups come.
    """

    @property
    def concurrent(self) -> bool:
        """Whether scoring may overlap sampling.

        If so, `score` is called for each group as it ends, in the event loop of another thread. Otherwise
        `score_all` is called once, after sampling.
        """
        ...

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the parts that a judge gives."""
        ...

    @property
    def counters(self) -> Counter[str]:
        """Running totals of events."""
        ...

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take the engine and all tools; called once, after the model is loaded."""

    def coefficients(self, progress: TrainingProgress) -> dict[str, float]:
        """The weights in force at ``progress``, by the name of the part they weigh."""

    async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
        """Score one group."""

    async def score_all(self, groups: Sequence[Candidates], progress: TrainingProgress) -> list[GroupScores]:
        """Score many groups at once; the result is in their order."""
