"""The factories of the built-in rewards, each with its options (methods 1.6).

Confirmed [NOTES]: which rewards there are, and the form of Adaptive RULER,
``(1 - lambda_k) R_metric + lambda_k R_RULER`` with lambda rising to 0.3. Schedules, weights and rubrics are
[INFERRED], and options here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from proactor.dialogue.matching import THETA
from proactor.rewards.call import import_reward
from proactor.rewards.components import FunctionComponent, MetricComponent, RulerComponent, make_ruler
from proactor.rewards.mixture import UNIT, Mixture, Range, Term
from proactor.rewards.options import RewardError, RewardOptions, read_options
from proactor.rewards.schedule import Constant, Curve, Linear, Rest, Schedule, Thirds, Weight
from proactor.rewards.utility import Utility
from proactor.rewards.weighted_metric import Consistency, WeightedMetric, metric_range, timing_range


class FalseOptions(RewardOptions):
    """Which action is which reference's: all that F depends on."""

    theta: float = THETA
    values: Literal["similar", "exact"] = "similar"

    def metric(self) -> WeightedMetric:
        """The metric of these options, with its own weights."""
        counted = set(type(self).model_fields) & set(MetricOptions.model_fields)
        return WeightedMetric(**self.model_dump(include=counted))


class AgreementOptions(FalseOptions):
    """What RAC and Max RAC depend on."""

    waiting: Literal["open", "ready"] = "open"


class TimingOptions(FalseOptions):
    """What T depends on."""

    early: float | Literal["linear"] = 1.0
    pending: float = Field(default=0.0, ge=0)


class MetricOptions(TimingOptions, AgreementOptions):
    """How decisions are classed and credited: the options of `WeightedMetric` without its weights."""


class WeightedMetricOptions(MetricOptions):
    """All options of `WeightedMetric`."""

    consistency: float = 0.5
    timing: float = 0.4
    false: float = 0.1

    def metric(self) -> WeightedMetric:
        """The metric of these options, weights included."""
        return replace(super().metric(), consistency=self.consistency, timing=self.timing, false=self.false)


class ConsistencyOptions(RewardOptions):
    """The options of `Consistency`."""

    theta: float = THETA
    waiting: Literal["open", "ready"] = "open"


class AdaptiveMetricOptions(MetricOptions):
    """``alpha_k RAC + timing_k T_u - false_k F_u`` at update k, turn u; ``timing`` None is 1 - alpha.

    The values 0.3, 0.5, 0.7 and 0.05, 0.1, 0.2 of the thirds are [INFERRED].
    """

    alpha: Schedule = Thirds(values=(0.3, 0.5, 0.7))
    timing: Schedule | None = None
    false: Schedule = Thirds(values=(0.05, 0.1, 0.2))


class RulerOptions(RewardOptions):
    """A judge with its rubric. ``judge``: as `ruler.build_judge` takes it; the others: as in `ruler.Ruler`.

    A ``cache`` file keeps verdicts, so that a resumed run sees the same ones even if the judge would vary.
    """

    judge: str | dict[str, Any]
    rubric: str = "custom"
    seed: int = 0
    timeout: float | None = Field(default=120.0, gt=0)
    cache: str | None = None
    grading: str | None = None

    def component(self, where: str) -> RulerComponent:
        """The judge as a component of a mixture. Raises RewardError as `make_ruler` does."""
        options = self.model_dump(include={"seed", "timeout", "cache", "grading"})
        return RulerComponent(make_ruler(self.judge, self.rubric, options, where))


class AdaptiveRulerOptions(RulerOptions):
    """``metric``: RAC or Max RAC [NOTES], with ``metric_options``.

    lambda rises to ``lambda_max`` [NOTES] over the first ``warm_up`` of training, a share [INFERRED].
    """

    metric: Literal["rac", "max_rac"] = "rac"
    metric_options: AgreementOptions = AgreementOptions()
    lambda_max: float = Field(default=0.3, ge=0, le=1)
    warm_up: float = Field(default=0.5, ge=0, le=1)


class MixtureOptions(RewardOptions):
    """``components``: by name, the weight, the range, and the options of the reward of that name."""

    components: dict[str, dict[str, Any]] = Field(min_length=1)


class ComponentOptions(RewardOptions):
    """``weight`` and ``range`` of a component. Its values must lie in the range; some rewards have none."""

    weight: Weight
    range: Range | None = None

    @field_validator("range")
    @classmethod
    def _validate_order(cls, value: Range | None) -> Range | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"{list(value)} is empty or reversed")
        return value


def weighted_metric(**options: Any) -> WeightedMetric:
    """Weighted Metric: the sum of consistency and timing, minus false fires, with fixed weights."""
    return read_options(WeightedMetricOptions, options, "reward 'weighted_metric'").metric()


def rac(**options: Any) -> Consistency:
    """RAC alone."""
    return Consistency("rac", **read_options(ConsistencyOptions, options, "reward 'rac'").model_dump())


def max_rac(**options: Any) -> Consistency:
    """Max RAC alone."""
    return Consistency(
        "max_rac", **read_options(ConsistencyOptions, options, "reward 'max_rac'").model_dump()
    )


def adaptive_metric(**options: Any) -> Mixture:
    """Adaptive Metric: the weighted metric, with weights by stage of training."""
    read = read_options(AdaptiveMetricOptions, options, "reward 'adaptive_metric'")
    component = MetricComponent(read.metric())
    timing: Curve = read.timing or _scale(read.alpha, 1.0, -1.0)
    return Mixture(
        "adaptive_metric",
        [
            Term("rac", component, "rac", read.alpha),
            Term("timing", component, "timing", timing, timing_range(read.metric())),
            Term("false", component, "false", _scale(read.false, 0.0, -1.0)),
        ],
    )


def _scale(schedule: Curve, offset: float, factor: float) -> Curve:
    """The schedule ``offset + factor * s(u)``."""
    if isinstance(schedule, Constant):
        return Constant(value=offset + factor * schedule.value)
    if isinstance(schedule, Linear):
        start, to = offset + factor * schedule.start, offset + factor * schedule.to
        return Linear(start=start, to=to, warm_up=schedule.warm_up)
    a, b, c = (offset + factor * v for v in schedule.values)
    return Thirds(values=(a, b, c))


def general_ruler(**options: Any) -> Mixture:
    """General RULER: a judge with the default rubric."""
    return _ruler_alone("general_ruler", {"rubric": "general", **options})


def custom_ruler(**options: Any) -> Mixture:
    """Custom RULER: a judge with the proactiveness rubric and its sub-scores."""
    return _ruler_alone("custom_ruler", options)


def _ruler_alone(name: str, options: Mapping[str, Any]) -> Mixture:
    where = f"reward {name!r}"
    component = read_options(RulerOptions, options, where).component(where)
    return Mixture(name, [Term("ruler", component, "ruler", Constant(value=1.0))])


def adaptive_ruler_reward(**options: Any) -> Mixture:
    """Adaptive RULER: a metric, and a judge whose weight rises during training."""
    where = "reward 'adaptive_ruler'"
    read = read_options(AdaptiveRulerOptions, options, where)
    metric = MetricComponent(read.metric_options.metric())
    rising = Linear(to=read.lambda_max, warm_up=read.warm_up)
    return Mixture(
        "adaptive_ruler",
        [
            Term(read.metric, metric, read.metric, Rest()),
            Term("ruler", read.component(where), "ruler", rising),
        ],
    )


METRIC_PARTS: Mapping[str, type[FalseOptions]] = {
    "rac": AgreementOptions,
    "max_rac": AgreementOptions,
    "timing": TimingOptions,
    "false": FalseOptions,
}
"""The options of each part of the weighted metric in a mixture: those that change it."""
COMPONENTS = (*METRIC_PARTS, "weighted_metric", "utility", "general_ruler", "custom_ruler")
"""Names of a mixture's components, beside `module:function`."""


def mixture(**options: Any) -> Mixture:
    """Any rewards, weighted. In a config:

    reward_options: {components: {rac: {weight: 0.5}, "my_module:fn": {weight: 0.5, range: [0, 2]}}}
    """
    read = read_options(MixtureOptions, options, "reward 'mixture'")
    return Mixture("mixture", [_term(name, component) for name, component in read.components.items()])


def _term(name: str, options: Mapping[str, Any]) -> Term:
    """The term of one component; ``options``: its weight and range, and those of the reward ``name``."""
    where = f"reward 'mixture': components.{name}"
    own = {key: options[key] for key in ComponentOptions.model_fields if key in options}
    rest = {key: value for key, value in options.items() if key not in own}
    read = read_options(ComponentOptions, own, where)
    if name in METRIC_PARTS:
        metric = read_options(METRIC_PARTS[name], rest, where).metric()
        natural = timing_range(metric) if name == "timing" else UNIT
        return Term(name, MetricComponent(metric), name, read.weight, read.range or natural)
    if name == "weighted_metric":
        metric = read_options(WeightedMetricOptions, rest, where).metric()
        return Term(name, MetricComponent(metric), "reward", read.weight, read.range or metric_range(metric))
    if name == "utility":
        if read.range is None:
            raise RewardError(f"{where}: a utility has no range of its own: declare range: [low, high]")
        return Term(name, MetricComponent(Utility(**rest)), "reward", read.weight, read.range)
    if name in ("general_ruler", "custom_ruler"):
        ruler = read_options(RulerOptions, {"rubric": name.removesuffix("_ruler"), **rest}, where)
        return Term(name, ruler.component(where), "ruler", read.weight, read.range or UNIT)
    if ":" not in name:
        raise RewardError(f"{where}: unknown; one of {', '.join(COMPONENTS)}, or module:function")
    if rest:
        raise RewardError(f"{where}: unknown key {min(rest)!r} (known: weight, range)")
    function = import_reward(name)
    if not callable(function):
        raise RewardError(f"{where}: compares the answers of a group; a mixture takes functions")
    return Term(name, FunctionComponent(name, function), "reward", read.weight, read.range or UNIT)
