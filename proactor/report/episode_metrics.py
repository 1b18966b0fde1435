"""The metrics of a run in an environment, from its ``summary.json``: start and end on the test tasks."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.files import SourceError, first_problem
from proactor.methods.user_metrics import LARGEST_K
from proactor.report.comparison import Metric, MetricLine, Sides, metric_line
from proactor.scoring.bootstrap import Interval
from proactor.training.record import RunRecord

LEVEL = 0.95
Side = Literal["before", "after"]
SIDES: tuple[Side, Side] = ("before", "after")

METRICS: dict[str, tuple[Metric, ...]] = {
    "Success": (
        Metric("score", "Score", "the environment's own measure, mean over tasks", share=False),
        Metric("solved", "Solved", "share of the tasks, by the gym's word or a score that reaches success"),
        *(
            Metric(f"pass_u{k}", f"Pass@U-{k}", f"solved with at most {k} user-involved call{'s' * (k > 1)}")
            for k in range(1, LARGEST_K + 1)
        ),
    ),
    "At what price": (
        Metric("user_rate", "UR", "share of all actions that involved the user", better=-1),
        Metric("user_rate_macro", "UR by episode", "the same, mean over episodes", better=-1),
        Metric("user_actions", "U", "actions of an episode that involved the user", better=-1, share=False),
        Metric("tokens", "Tokens", "drawn in an episode", better=0, share=False),
    ),
}
"""The rows of the table by section."""
HEADLINES = ("score", "solved", "pass_u1", "pass_u2", "pass_u3", "user_rate", "user_actions", "tokens")


class Estimate(BaseModel):
    """An interval as a summary has it; None where it is undefined."""

    model_config = ConfigDict(frozen=True)

    estimate: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> Interval:
        """The interval; NaN where it is undefined."""
        estimate, low, high = (math.nan if v is None else v for v in (self.estimate, self.low, self.high))
        return Interval(estimate, low, high, LEVEL)


class EpisodeSummary(BaseModel):
    """What a page takes of a run's ``summary.json``."""

    model_config = ConfigDict(frozen=True)

    tasks: int
    intervals: dict[Side, dict[str, Estimate]]
    difference: dict[str, Estimate]

    @classmethod
    def of(cls, record: RunRecord) -> EpisodeSummary | None:
        """The summary of a run; None before its end. Raises SourceError, naming the run, where it lacks
        something.
        """
        if not set(SIDES) & record.summary.keys():
            return None
        try:
            read = cls.model_validate(record.summary)
        except ValidationError as error:
            raise SourceError(f"summary.json of {record.name}: {first_problem(error)}") from None
        keys = {metric.key for metrics in METRICS.values() for metric in metrics}
        for where, found in (*read.intervals.items(), ("difference", read.difference)):
            if missing := keys - found.keys():
                raise SourceError(f"summary.json of {record.name}: {where}: {min(missing)} is missing")
        if absent := set(SIDES) - read.intervals.keys():
            raise SourceError(f"summary.json of {record.name}: intervals: {min(absent)} is missing")
        return read

    def lines(self, sides: Sides) -> dict[str, list[MetricLine]]:
        """Every metric by section."""

        def line(m: Metric) -> MetricLine:
            old, new = (self.intervals[side][m.key].interval for side in SIDES)
            return metric_line(m, old, new, self.difference[m.key].interval, {}, sides)

        return {section: [line(m) for m in metrics] for section, metrics in METRICS.items()}
