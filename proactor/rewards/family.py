"""The paper's rewards that need a stage or a judge, and mixtures of one's own, each built from its options
(methods 1.6).

Which rewards there are is confirmed [NOTES], and so is Adaptive RULER's form, `(1 - lambda_u) R_metric +
lambda_u R_RULER` with lambda rising to 0.3; schedules, weights and rubrics are [INFERRED] and options here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from proactor.dialogue.matching import THETA
from proactor.rewards.components import (
    UNIT,
    FunctionSource,
    MetricSource,
    Range,
    RulerSource,
    make_ruler,
    metric_range,
    timing_range,
)
from proactor.rewards.mixture import Mixture, Term
from proactor.rewards.options import RewardError, RewardOptions, read
from proactor.rewards.run import own_reward
from proactor.rewards.schedule import Constant, Fixed, Linear, Rest, Schedule, Thirds, Weight
from proactor.rewards.turn import Consistency, WeightedMetric
from proactor.rewards.utility import Utility


class MetricOptions(RewardOptions):
    """How decisions are classed and credited; see `WeightedMetric`."""

    early: float | Literal["linear"] = 1.0
    waiting: Literal["open", "ready"] = "open"
    pending: float = Field(default=0.0, ge=0)
    theta: float = THETA

    def metric(self) -> WeightedMetric:
        """The metric whose parts are used."""
        return WeightedMetric(early=self.early, waiting=self.waiting, pending=self.pending, theta=self.theta)


class WeightedMetricOptions(MetricOptions):
    """The same with the fixed weights of `WeightedMetric`."""

    consistency: float = 0.5
    timing: float = 0.4
    false: float = 0.1

    def metric(self) -> WeightedMetric:
        return replace(super().metric(), consistency=self.consistency, timing=self.timing, false=self.false)


class ConsistencyOptions(RewardOptions):
    """See `Consistency`."""

    theta: float = THETA
    waiting: Literal["open", "ready"] = "open"


class AdaptiveMetricOptions(MetricOptions):
    """`alpha_u RAC + timing_u T_u - false_u F_u`; ``timing`` is 1 - alpha unless given [INFERRED: .3/.5/.7
    and .05/.1/.2 in thirds].
    """

    alpha: Schedule = Thirds(values=(0.3, 0.5, 0.7))
    timing: Schedule | None = None
    false: Schedule = Thirds(values=(0.05, 0.1, 0.2))


class RulerOptions(RewardOptions):
    """``judge``: {kind: rule | engine | endpoint, …}; ``rubric``: general, custom, or a text; the others are
    those of `ruler.Ruler`. A ``cache`` file keeps verdicts, so that a resumed run with a judge that varies
    meets the same ones.
    """

    judge: str | dict[str, Any]
    rubric: str = "custom"
    seed: int = 0
    timeout: float | None = Field(default=120.0, gt=0)
    cache: str | None = None
    grading: str | None = None

    def ruler(self, where: str) -> RulerSource:
        """The judge at work. RewardError names what cannot be."""
        options = self.model_dump(include={"seed", "timeout", "cache", "grading"})
        return RulerSource(make_ruler(self.judge, self.rubric, options, where))


class AdaptiveRulerOptions(RulerOptions):
    """``metric``: RAC or Max RAC [NOTES], with ``metric_options``. lambda rises to ``lambda_max`` [NOTES]
    within ``warm_up`` of training [INFERRED].
    """

    metric: Literal["rac", "max_rac"] = "rac"
    metric_options: MetricOptions = MetricOptions()
    lambda_max: float = Field(default=0.3, ge=0, le=1)
    warm_up: float = Field(default=0.5, ge=0, le=1)


class MixtureOptions(RewardOptions):
    """``components``: name -> {weight, range, and the options of the reward of that name}."""

    components: dict[str, dict[str, Any]] = Field(min_length=1)


class ComponentOptions(RewardOptions):
    """``range``: what the component's values lie in; needed where nobody knows it."""

    weight: Weight
    range: Range | None = None

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"{list(value)} is empty or reversed")
        return value


def weighted_metric(**options: Any) -> WeightedMetric:
    """Weighted Metric, fixed weights."""
    return read(WeightedMetricOptions, options, "reward 'weighted_metric'").metric()


def rac(**options: Any) -> Consistency:
    """RAC alone."""
    return Consistency("rac", **read(ConsistencyOptions, options, "reward 'rac'").model_dump())


def max_rac(**options: Any) -> Consistency:
    """Max RAC alone."""
    return Consistency("max_rac", **read(ConsistencyOptions, options, "reward 'max_rac'").model_dump())


def adaptive_metric(**options: Any) -> Mixture:
    """Adaptive Metric: the weighted metric with weights by stage of training."""
    given = read(AdaptiveMetricOptions, options, "reward 'adaptive_metric'")
    source = MetricSource(given.metric())
    timing: Fixed = given.timing or _shifted(given.alpha, 1.0, -1.0)
    return Mixture(
        "adaptive_metric",
        [
            Term("rac", source, "rac", given.alpha),
            Term("timing", source, "timing", timing, timing_range(given.metric())),
            Term("false", source, "false", _shifted(given.false, 0.0, -1.0)),
        ],
    )


def _shifted(schedule: Fixed, offset: float, factor: float) -> Fixed:
    """The schedule `offset + factor * s(u)`."""
    if isinstance(schedule, Constant):
        return Constant(value=offset + factor * schedule.value)
    if isinstance(schedule, Linear):
        ends = offset + factor * schedule.start, offset + factor * schedule.to
        return Linear(start=ends[0], to=ends[1], warm_up=schedule.warm_up)
    a, b, c = (offset + factor * v for v in schedule.values)
    return Thirds(values=(a, b, c))


def general_ruler(**options: Any) -> Mixture:
    """General RULER: a judge with the default rubric."""
    return _ruler("general_ruler", {"rubric": "general", **options})


def custom_ruler(**options: Any) -> Mixture:
    """Custom RULER: a judge with the proactiveness rubric and its sub-scores."""
    return _ruler("custom_ruler", options)


def _ruler(name: str, options: Mapping[str, Any]) -> Mixture:
    where = f"reward {name!r}"
    return Mixture(
        name, [Term("ruler", read(RulerOptions, options, where).ruler(where), "ruler", Constant(value=1.0))]
    )


def adaptive_ruler_reward(**options: Any) -> Mixture:
    """Adaptive RULER: metric first, the judge's word more and more."""
    where = "reward 'adaptive_ruler'"
    given = read(AdaptiveRulerOptions, options, where)
    return Mixture(
        "adaptive_ruler",
        [
            Term(given.metric, MetricSource(given.metric_options.metric()), given.metric, Rest()),
            Term("ruler", given.ruler(where), "ruler", Linear(to=given.lambda_max, warm_up=given.warm_up)),
        ],
    )


# -- mixtures ---

METRIC_PARTS = ("rac", "max_rac", "timing", "false")
COMPONENTS = (*METRIC_PARTS, "weighted_metric", "utility", "general_ruler", "custom_ruler")
"""What a mixture can name, beside module:function."""


def mixture(**options: Any) -> Mixture:
    """Any rewards, weighted: `reward_options: {components: {rac: {weight: 0.5}, "my_module:fn": {weight: 0.5,
    range: [0, 2]}}}`.
    """
    given = read(MixtureOptions, options, "reward 'mixture'")
    return Mixture("mixture", [_term(name, component) for name, component in given.components.items()])


def _term(name: str, component: Mapping[str, Any]) -> Term:
    where = f"reward 'mixture': components.{name}"
    own = {key: component[key] for key in ComponentOptions.model_fields if key in component}
    rest = {key: value for key, value in component.items() if key not in own}
    given = read(ComponentOptions, own, where)
    if name in METRIC_PARTS:
        metric = read(MetricOptions, rest, where).metric()
        natural = timing_range(metric) if name == "timing" else UNIT
        return Term(name, MetricSource(metric), name, given.weight, given.range or natural)
    if name == "weighted_metric":
        metric = read(WeightedMetricOptions, rest, where).metric()
        return Term(name, MetricSource(metric), "reward", given.weight, given.range or metric_range(metric))
    if name == "utility":
        if given.range is None:
            raise RewardError(f"{where}: a utility has no range of its own: declare range: [low, high]")
        return Term(name, MetricSource(Utility(**rest)), "reward", given.weight, given.range)
    if name in ("general_ruler", "custom_ruler"):
        judged = read(RulerOptions, {"rubric": name.removesuffix("_ruler"), **rest}, where)
        return Term(name, judged.ruler(where), "ruler", given.weight, given.range or UNIT)
    if ":" not in name:
        raise RewardError(f"{where}: unknown; one of {', '.join(COMPONENTS)}, or module:function")
    if rest:
        raise RewardError(f"{where}: unknown key {min(rest)!r} (known: weight, range)")
    function = own_reward(name)
    if not callable(function):
        raise RewardError(f"{where}: compares the answers of a group; a mixture takes functions")
    return Term(name, FunctionSource(name, function), "reward", given.weight, given.range or UNIT)
