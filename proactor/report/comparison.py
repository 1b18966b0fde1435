"""The table of metrics before and after training, with intervals, beside the trivial policies.

A change counts as better or worse only if its paired bootstrap interval over dialogues excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from proactor.evaluation.play import Evaluation
from proactor.evaluation.policies import HUMAN
from proactor.report import charts
from proactor.scoring.bootstrap import Interval, intervals, paired_difference


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name and sentence. ``better``: 1 if higher is better, -1 if lower is, 0 if neither.

    ``share``: the metric lies in 0..1.
    """

    key: str
    name: str
    help: str
    better: int = 1
    share: bool = True


METRICS: dict[str, tuple[Metric, ...]] = {
    "Reward": (Metric("reward", "Turn reward", "mean over decision points", share=False),),
    "Values": (
        Metric(
            "values_right",
            "Values right",
            "all required values right, among first fires with half of the values right",
        ),
    ),
    "When it first acts": (
        Metric(
            "first_fire_f1",
            "First-fire F1",
            "one fire a reference; all required values right, early or on time; a repeat is false",
        ),
        Metric("first_fire_precision", "First-fire precision", "right first fires among all fires"),
        Metric("first_fire_recall", "First-fire recall", "references fired on before their window closed"),
        Metric("on_time_f1", "On-time F1", "the strict reading: an early fire is a miss"),
        Metric(
            "lead", "Lead", "turns before the window opens; neither sign is better", better=0, share=False
        ),
    ),
    "When it first acts, by similarity": (
        Metric("similarity_first_fire_f1", "First-fire F1, similar", "half of the values suffice"),
        Metric("similarity_first_fire_precision", "First-fire precision, similar", "the same"),
        Metric("similarity_first_fire_recall", "First-fire recall, similar", "the same"),
        Metric("similarity_on_time_f1", "On-time F1, similar", "the same; an early fire is a miss"),
    ),
    "What it proposes": (
        Metric("ac", "AC", "mean similarity to what is open"),
        Metric("max_ac", "Max AC", "similarity of the best proposal of a turn"),
        Metric("difference", "Difference", "Max AC over AC, minus 1", better=-1, share=False),
    ),
    "When it fires, repeats counted": (
        Metric("precision", "Window precision", "fires no later than the window among all fires"),
        Metric("recall", "Window recall", "references hit at least once"),
        Metric("window_f1", "Window F1", "of the two above"),
        Metric("similarity_precision", "Window precision, similar", "half of the values suffice"),
        Metric("similarity_recall", "Window recall, similar", "the same"),
        Metric("pt", "PT", "well-timed fires among all proposals, by similarity"),
        Metric("pt_weighted", "PT, weighted", "an early fire counts by how early"),
        Metric("ftr", "FTR", "false fires among all proposals", better=-1),
        Metric("late_share", "Late", "late fires among all proposals", better=-1),
        Metric("rar", "RAR", "fires among all proposals; PRI takes more for better"),
    ),
    "Taken together": (
        Metric("pri", "PRI", "harmonic mean of CI and TI; flatters few actions and many"),
        Metric("ci", "CI", "from AC, Max AC, Difference"),
        Metric("ti", "TI", "from PT, FTR, RAR"),
    ),
    "Form": (Metric("unparsed_share", "Unparsed", "outputs that could not be read in full", better=-1),),
}
"""The rows of the table by section."""

MAIN = ("Reward", "Values", "When it first acts")
"""The sections that stand open; the others are folded."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Names of the two systems of a report: in a column, and at the end of a sentence."""

    before: str = "before"
    after: str = "after"
    after_phrase: str = "after training"

    @classmethod
    def of_runs(cls, first: str, second: str) -> Sides:
        """Two runs, each after its training."""
        return cls(first, second, f"with {second}")


@dataclass(frozen=True, slots=True)
class MetricLine:
    """A row of the table.

    ``verdict``: better, worse, leaning_better, leaning_worse, same or open (no direction). ``best``: the
    metric after training is at least as good as all others in the row. ``apart``: why the two values are not
    one measure, "" where they are; such a row has no strip, change or verdict.
    """

    metric: Metric
    before: Interval
    after: Interval
    change: Interval
    verdict: str
    others: Mapping[str, float | None]
    best: bool
    strip: Markup
    apart: str = ""


@dataclass(frozen=True, slots=True)
class Rival:
    """The strongest trivial policy by a metric; ``margin``: after training minus it, paired by dialogue."""

    line: MetricLine
    name: str
    margin: Interval
    behind: bool


def table(
    before: Evaluation,
    after: Evaluation,
    trivial: Mapping[str, Evaluation],
    sides: Sides | None = None,
    apart: Mapping[str, str] | None = None,
) -> dict[str, list[MetricLine]]:
    """Every metric by section; ``sides`` names the two systems in tooltips. ``apart``: by key, why the two
    values of a metric are not one measure (see `MetricLine`); ``trivial`` is then left out as well.

    Raises ProactorError without dialogues, or when ``before`` and ``after`` hold different ones.
    """
    keys = [metric.key for metrics in METRICS.values() for metric in metrics]
    old, new = intervals(before.contributions, keys), intervals(after.contributions, keys)
    change = paired_difference([before.contributions], [after.contributions], keys)
    sides = sides or Sides()
    lines: dict[str, list[MetricLine]] = {}
    for section, metrics in METRICS.items():
        for m in metrics:
            if reason := (apart or {}).get(m.key):
                nothing: dict[str, float | None] = dict.fromkeys(trivial)
                unknown = Interval(math.nan, math.nan, math.nan, new[m.key].level)
                row = MetricLine(m, old[m.key], new[m.key], unknown, "open", nothing, False, Markup(), reason)
                lines.setdefault(section, []).append(row)
                continue
            others = {name: e.metrics[m.key] for name, e in trivial.items()}
            row = metric_line(m, old[m.key], new[m.key], change[m.key], others, sides)
            lines.setdefault(section, []).append(row)
    return lines


def metric_line(
    metric: Metric,
    before: Interval,
    after: Interval,
    change: Interval,
    others: Mapping[str, float | None],
    sides: Sides,
) -> MetricLine:
    """The row of a metric, beside its values of the systems ``others``."""
    value = after.estimate
    best = (
        bool(metric.better)
        and math.isfinite(value)
        and all(
            other is None or math.isnan(other) or metric.better * (value - other) >= 0
            for other in (*others.values(), before.estimate)
        )
    )
    low, high = (0.0, 1.0) if metric.share else _span(before, after, others)
    names = (sides.before, sides.after)
    strip = charts.strip(_range(before), _range(after), others, low, high, names)
    return MetricLine(metric, before, after, change, _verdict(metric, change), others, best, strip)


def _verdict(metric: Metric, change: Interval) -> str:
    if not metric.better or not math.isfinite(change.estimate):
        return "open"
    if abs(change.estimate) < 1e-12:
        return "same"
    word = "better" if change.estimate * metric.better > 0 else "worse"
    return word if change.excludes_zero else f"leaning_{word}"


def _range(interval: Interval) -> charts.Range:
    return charts.Range(interval.estimate, interval.low, interval.high)


def _span(old: Interval, new: Interval, others: Mapping[str, float | None]) -> tuple[float, float]:
    values = [0.0, *(v for v in others.values() if v is not None)]
    values += [x for i in (old, new) for x in (i.estimate, i.low, i.high) if math.isfinite(x)]
    return min(values), max(values)


def rival(key: str, line: MetricLine, after: Evaluation, trivial: Mapping[str, Evaluation]) -> Rival:
    """The strongest trivial policy by a metric where higher is better; the logged human does not count."""
    name = max((n for n in trivial if n != HUMAN), key=lambda n: _or_least(trivial[n].metrics[key]))
    margin = paired_difference([trivial[name].contributions], [after.contributions], [key])[key]
    return Rival(line, name, margin, behind=margin.high < 0)


def _or_least(value: float | None) -> float:
    """``value``, or less than any where it is undefined."""
    return -math.inf if value is None else value
