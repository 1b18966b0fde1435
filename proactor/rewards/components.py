"""What a mixture is made of: each source scores whole groups and names what it gives."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import messages
from proactor.rewards.group import Scored
from proactor.rewards.options import RewardError
from proactor.rewards.run import RewardFunction, run_reward
from proactor.rewards.turn import TurnReward, WeightedMetric

if TYPE_CHECKING:
    from proactor.engine import Engine
    from proactor.ruler import Ruler

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)


class Source(Protocol):
    """Gives named numbers for each candidate. ``costly``: not asked while every coefficient on it is 0."""

    @property
    def costly(self) -> bool: ...
    @property
    def concurrent(self) -> bool: ...
    @property
    def counters(self) -> Counter[str]: ...

    def bind(self, engine: Engine, catalog: Catalog) -> None: ...
    async def score_all(self, groups: Sequence[Candidates]) -> list[Scored]: ...


class _Computed:
    """A source that computes on the spot: cheap, in order, nothing to count and nothing to take note of."""

    costly = False
    concurrent = False

    @property
    def counters(self) -> Counter[str]:
        return Counter()

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Nothing to take note of."""


@dataclass(frozen=True)
class MetricSource(_Computed):
    """The parts of a metric reward; two sources of equal metrics are equal, and a mixture asks only one of
    them.
    """

    metric: TurnReward

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Some metrics want to know the tools."""
        bind_metric(self.metric, engine, catalog)

    async def score_all(self, groups: Sequence[Candidates]) -> list[Scored]:
        return [
            [self.metric.parts(g.dialogue, g.turn, parsed, g.board) for parsed in g.parsed] for g in groups
        ]


@dataclass(frozen=True)
class FunctionSource(_Computed):
    """A reward function of one's own in TRL's signature; its prompts are message lists."""

    name: str
    function: RewardFunction

    async def score_all(self, groups: Sequence[Candidates]) -> list[Scored]:
        return [self._score(group) for group in groups]

    def _score(self, group: Candidates) -> Scored:
        prompt = messages(group.dialogue, group.turn, group.board, group.tools)
        return run_reward(self.name, self.function, group, lambda: [prompt] * len(group))


@dataclass(frozen=True, eq=False)
class RulerSource:
    """A judge's scores of a whole group."""

    ruler: Ruler
    costly = True

    @property
    def concurrent(self) -> bool:
        return self.ruler.concurrent

    @property
    def counters(self) -> Counter[str]:
        """The ruler's, and those of its endpoint as ``endpoint_<name>``."""
        endpoint = getattr(self.ruler.judge, "endpoint", None)
        told = Counter() if endpoint is None else {f"endpoint_{k}": n for k, n in endpoint.counters.items()}
        return Counter({**self.ruler.counters, **told})

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """The judge in process gets its engine. RewardError when it cannot be used."""
        from proactor.ruler.rubric import RulerError

        try:
            self.ruler.bind(engine)
        except RulerError as error:
            raise RewardError(str(error)) from error

    async def score_all(self, groups: Sequence[Candidates]) -> list[Scored]:
        from proactor.endpoint import EndpointSetupError
        from proactor.ruler.rubric import RulerError

        try:
            if self.ruler.concurrent:
                return list(await asyncio.gather(*(self.ruler.score(group) for group in groups)))
            return list(await self.ruler.score_all(list(groups)))
        except (EndpointSetupError, RulerError) as error:  # what no retry can mend
            raise RewardError(f"judge {self.ruler.judge.name}: {error}") from error


def bind_metric(metric: object, engine: Engine, catalog: Catalog) -> None:
    """Tell a reward the engine and the tools where it wants to know them."""
    bind = getattr(metric, "bind", None)
    if callable(bind):
        bind(engine, catalog)


def timing_range(metric: WeightedMetric) -> Range:
    """The least and most that T_u can be."""
    early = 0.0 if metric.early == "linear" else float(metric.early)
    return min(0.0, early, metric.pending), max(1.0, early, metric.pending)


def metric_range(metric: WeightedMetric) -> Range:
    """The least and most that the weighted metric can give."""
    timing = timing_range(metric)
    ends = [(0.0, metric.consistency), tuple(metric.timing * t for t in timing), (0.0, -metric.false)]
    return sum(min(e) for e in ends), sum(max(e) for e in ends)


def unit(name: str, value: float, bounds: Range) -> float:
    """``value`` on the scale 0..1 of its declared ``bounds``; RewardError when it lies outside (by more than
    rounding).
    """
    low, high = bounds
    share = (value - low) / (high - low)
    if not math.isfinite(share) or not -1e-6 <= share <= 1 + 1e-6:
        raise RewardError(
            f"reward {name!r} gave {value!r}, outside its range {low:g} to {high:g}: declare range: [low, "
            "high]"
        )
    return min(1.0, max(0.0, share))


def make_ruler(judge: str | Mapping[str, Any], rubric: str, options: Mapping[str, Any], where: str) -> Ruler:
    """A ruler with the judge of these options (`ruler.build_judge`). RewardError names what cannot be, before
    a model is loaded.
    """
    from proactor.endpoint import Endpoint, EndpointSetupError
    from proactor.ruler import EndpointJudge, Ruler, RulerError, build_judge

    try:
        ruler = Ruler(build_judge(judge), rubric=rubric, **options)
    except (RulerError, EndpointSetupError) as error:
        raise RewardError(f"{where}: {error}") from None
    if isinstance(ruler.judge, EndpointJudge):
        asked: Endpoint = ruler.judge.endpoint
        if importlib.util.find_spec("openai") is None:
            raise RewardError(
                f"{where}: judge: an endpoint needs the openai client: pip install 'proactor[openai]'"
            )
        if asked.base_url is None and not os.environ.get(asked.api_key_env):
            raise RewardError(f"{where}: judge: the environment variable {asked.api_key_env} is not set")
    return ruler
