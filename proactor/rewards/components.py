"""The components of a mixture: metrics, functions and judges, each of which scores whole groups."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import messages
from proactor.endpoint_errors import EndpointSetupError
from proactor.rewards.call import RewardFunction, run_reward
from proactor.rewards.group import GroupScores
from proactor.rewards.options import RewardError
from proactor.rewards.turn import Content, TurnReward
from proactor.ruler import EndpointJudge, Ruler, RulerError, build_judge

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine


class Component(Protocol):
    """Scores each candidate of a group by one or more named numbers."""

    @property
    def costly(self) -> bool:
        """Whether it is skipped while every coefficient on it is 0."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether it may score while the policy is being sampled."""
        ...

    @property
    def counters(self) -> Counter[str]:
        """Running totals of events."""
        ...

    @property
    def failure(self) -> str:
        """Why it last dropped a group, in one line; empty where it never did."""
        ...

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take the engine and all tools; called once."""

    async def score_all(self, groups: Sequence[Candidates]) -> list[GroupScores]:
        """Score many groups; the result is in their order."""


class _Computed:
    """Base of the components that compute in place: cheap, in order, without counters or state."""

    costly = False
    concurrent = False
    failure = ""

    @property
    def counters(self) -> Counter[str]:
        return Counter()

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Nothing to take."""


@dataclass(frozen=True)
class MetricComponent(_Computed):
    """The parts of a metric reward. Two components of equal metrics are equal, and a mixture asks one."""

    metric: TurnReward

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Bind the metric."""
        self.metric.bind(engine, catalog)

    async def score_all(self, groups: Sequence[Candidates]) -> list[GroupScores]:
        """The metric's parts for every candidate."""
        return [
            [self.metric.parts(g.dialogue, g.turn, parsed, g.board) for parsed in g.parsed] for g in groups
        ]


@dataclass(frozen=True)
class FunctionComponent(_Computed):
    """A user's own reward function in TRL's signature; its prompts are the texts that the policy saw, or
    where nobody sampled, message lists in the default style.
    """

    name: str
    function: RewardFunction

    async def score_all(self, groups: Sequence[Candidates]) -> list[GroupScores]:
        """The function's number for every candidate, as "reward"."""
        return [self._score(group) for group in groups]

    def _score(self, group: Candidates) -> GroupScores:
        def prompts() -> Sequence[Content]:
            if group.prompts:
                return group.prompts
            return [messages(group.dialogue, group.turn, group.board, group.tools)] * len(group)

        return run_reward(self.name, self.function, group, prompts)


@dataclass(frozen=True, eq=False)
class RulerComponent:
    """A judge's scores of whole groups."""

    ruler: Ruler
    costly = True

    @property
    def concurrent(self) -> bool:
        """Whether the judge may be asked while the policy is being sampled."""
        return self.ruler.concurrent

    @property
    def counters(self) -> Counter[str]:
        """Those of the ruler, and those of its endpoint as ``endpoint_<name>``."""
        counters = Counter(self.ruler.counters)
        if isinstance(self.ruler.judge, EndpointJudge):
            endpoint = self.ruler.judge.endpoint
            counters.update({f"endpoint_{name}": n for name, n in endpoint.counters.items()})
        return counters

    @property
    def failure(self) -> str:
        """Why the judge last gave no usable verdict."""
        return self.ruler.failure

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Give an in-process judge its engine. Raises RulerError where it cannot grade with it."""
        self.ruler.bind(engine)

    async def score_all(self, groups: Sequence[Candidates]) -> list[GroupScores]:
        """Ask the judge. Raises RewardError, naming the judge, for a failure that no retry can mend."""
        try:
            if self.ruler.concurrent:
                return list(await asyncio.gather(*(self.ruler.score(group) for group in groups)))
            return list(await self.ruler.score_all(list(groups)))
        except (EndpointSetupError, RulerError) as error:
            raise RewardError(f"judge {self.ruler.judge.name}: {error}") from error


def make_ruler(judge: str | Mapping[str, Any], rubric: str, options: Mapping[str, Any], where: str) -> Ruler:
    """A ruler with the judge of these options (`ruler.build_judge`), checked before a model is loaded.

    Raises RewardError, which begins with ``where``, for options that cannot work, and for an endpoint without
    its client or its API key.
    """
    try:
        ruler = Ruler(build_judge(judge), rubric=rubric, **options)
    except (RulerError, EndpointSetupError) as error:
        raise RewardError(f"{where}: {error}") from None
    if isinstance(ruler.judge, EndpointJudge):
        endpoint = ruler.judge.endpoint
        try:
            endpoint.check()
        except EndpointSetupError as error:
            raise RewardError(f"{where}: judge: {error}") from None
    return ruler
