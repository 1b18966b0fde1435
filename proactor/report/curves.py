"""Learning curves from the rows of metrics.jsonl: a small chart for every number, by section.

Known keys get a name and a sentence. An unknown one is shown under its own name, so that no counter is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from proactor.report.charts import Point, line
from proactor.report.numbers import number

EVALUATED = "Evaluations on held-out dialogues"
SECTIONS = ("Learning", "Reward parts", "Coefficients", "Judge", EVALUATED, "Health", "Work", "Other")

KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        r"reward(_mean|/mean)?",
        "Learning",
        "Reward",
        "mean over the samples of a step; band: one standard deviation",
    ),
    (
        r"held_?out_loss|eval[/_]loss|nll",
        "Learning",
        "Held-out loss",
        "nats a token on dialogues not trained on",
    ),
    (
        r"eval[/_](turn_)?reward",
        "Learning",
        "Reward, evaluated",
        "one answer a turn, on the agent's own board",
    ),
    (
        r"eval[/_]first_fire_f1",
        "Learning",
        "First-fire F1, evaluated",
        "all required values right, early or on time, one fire a reference",
    ),
    (
        r"eval[/_]values_right",
        "Learning",
        "Values right, evaluated",
        "among first fires with half of the values right",
    ),
    (r"(sft/)?loss", "Learning", "Loss", "nats a token, supervised"),
    (r"grpo/loss", "Learning", "Policy loss", "its value says little: near 0 by construction"),
    (
        r"parts?[/_.].*_within",
        "Reward parts",
        "",
        "mean deviation inside a group: the only spread that gives gradient",
    ),
    (r"parts?[/_.].*|reward[/_.](?!mean|std).*", "Reward parts", "", "mean over the samples of a step"),
    (r"coef[/_].*", "Coefficients", "", "of a part of the reward, at this step"),
    (r"judge[/_]spread", "Judge", "Spread", "mean deviation of its scores inside a group"),
    (r"judge[/_]agreement", "Judge", "Agreement", "share of pairs that it orders as the metric reward does"),
    (r"judge[/_].*|groups_dropped|skipped_update|seconds_judging|seconds_waiting", "Judge", "", ""),
    (r"eval[/_].*", EVALUATED, "", ""),
    (
        r".*zero_spread.*",
        "Health",
        "Groups without spread",
        "all samples scored the same: nothing to learn from",
    ),
    (r".*unparsed.*", "Health", "Unparsed", "share of outputs that could not be read in full"),
    (r"unread/.*", "Health", "", "pieces of outputs that could not be read, by reason"),
    (r".*truncated.*", "Health", "Truncated", "share of outputs cut off at the token limit"),
    (r"entropy.*", "Health", "Entropy", "nats a token: how undecided the policy still is"),
    (r"clip_share.*", "Health", "Clipped", "share of tokens whose ratio was clipped"),
    (r"grad_norm", "Health", "Gradient norm", "before clipping"),
    (r"adapter_norm", "Health", "Adapter norm", "distance from the base model"),
    (r"sampler_trainer_gap.*", "Health", "Sampler-trainer gap", "difference of their log-probabilities"),
    (r"ratio.*", "Health", "", "policy ratio, new to old"),
    (r"(mean_)?(kl|approx_kl).*|nonfinite.*|zero_gradient|masked_groups", "Health", "", ""),
    (r"tokens?_computed.*", "Work", "Tokens computed", "by the trainer, a step"),
    (r"tokens?_avoided.*", "Work", "Tokens avoided", "shared in the tree, so not computed again"),
    (r".*tokens.*|samples|groups|examples|unknowable", "Work", "", ""),
    (r"lr|learning_rate", "Work", "Learning rate", ""),
    (r".*(seconds|time|per_second|bytes|memory).*", "Work", "", ""),
)
"""(key pattern, section, name, sentence); the first that matches the whole key wins."""

SKIPPED = frozenset({"step", "epoch", "time", "timestamp", "wall_time", "policy_version", "seed"})
PHASES = ("phase", "kind", "stage")
SPREADS = ("_std", "/std", "_spread", "/spread")


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart, with its name, sentence, first and last value, and the last value of the run beside it."""

    key: str
    name: str
    help: str
    first: str
    last: str
    beside: str
    svg: Markup


@dataclass(slots=True)
class CurveSection:
    """Charts under one heading; numbers that never changed are listed in words."""

    title: str
    panels: list[Panel] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)


def sections(
    history: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()
) -> list[CurveSection]:
    """Charts of all numbers in ``history``, in the order of SECTIONS; empty sections are left out.

    ``beside``: the rows of another run, drawn into the charts of the numbers that both runs have. Its phases
    begin where those of ``history`` do.
    """
    xs, breaks = _steps(history)
    series, others = _series(history, xs), _series(beside, _align(beside, breaks))
    breaks = breaks if len(breaks) > 1 else []
    by_title = {title: CurveSection(title) for title in SECTIONS}
    for key in sorted(series, key=_order):
        if _is_spread(key, series):
            continue  # drawn as a band around its mean
        points, other = series[key], others.get(key, [])
        title, name, help = describe(key)
        if len({y for _, y in (*points, *other)}) == 1:
            by_title[title].constants.append((name, number(points[0][1])))
            continue
        svg = line(points, band=_band(key, series), breaks=breaks, beside=other, label=name)
        last = number(other[-1][1]) if other else ""
        panel = Panel(key, name, help, number(points[0][1]), number(points[-1][1]), last, svg)
        by_title[title].panels.append(panel)
    return [section for section in by_title.values() if section.panels or section.constants]


def _is_spread(key: str, series: Mapping[str, list[Point]]) -> bool:
    """Whether the key is the deviation of a mean that has a chart."""
    for suffix in SPREADS:
        if key.endswith(suffix):
            base = key.removesuffix(suffix)
            return any(name in series for name in (base, f"{base}_mean", f"{base}/mean"))
    return False


def _band(key: str, series: Mapping[str, list[Point]]) -> list[float] | None:
    """The deviation to draw around a mean; None where it is not in the same rows."""
    points = series[key]
    for base in (key, key.removesuffix("_mean"), key.removesuffix("/mean")):
        for suffix in SPREADS:
            if base + suffix in series and base + suffix != key:
                spread = series[base + suffix]
                same_rows = [x for x, _ in spread] == [x for x, _ in points]
                return [y for _, y in spread] if same_rows else None
    return None


def _series(history: Sequence[Mapping[str, Any]], xs: Sequence[float]) -> dict[str, list[Point]]:
    """The points of each key: (x, value) of every row that has it."""
    series: dict[str, list[Point]] = {}
    for x, row in zip(xs, history, strict=True):
        for key, value in _numbers(row):
            # Supervised and policy losses share a name, but not a meaning.
            name = f"{row['kind']}/{key}" if key == "loss" and row.get("kind") in ("sft", "grpo") else key
            series.setdefault(name, []).append((x, value))
    if "reward_mean" in series:
        series.pop("parts/reward", None)
    return series


def only_in(history: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers in ``history`` that are not in ``other``."""
    missing = _series(history, _steps(history)[0]).keys() - _series(other, _steps(other)[0]).keys()
    return sorted({describe(key)[1] for key in missing})


def describe(key: str) -> tuple[str, str, str]:
    """(section, name, sentence) of a key."""
    readable = (
        re.sub(r"^(train|eval|parts?)[/_.]", "", key.replace("_within", ", spread in a group"))
        .replace("_", " ")
        .replace("/", " · ")
        .strip()
    )
    readable = readable[:1].upper() + readable[1:]
    for pattern, section, name, help in KNOWN:
        if re.fullmatch(pattern, key.removeprefix("train/")):
            return section, name or readable, help
    return "Other", readable, ""


def _order(key: str) -> tuple[int, str]:
    bare = key.removeprefix("train/")
    return next((i for i, known in enumerate(KNOWN) if re.fullmatch(known[0], bare)), len(KNOWN)), key


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers of a row, nested ones under ``outer/inner``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif key not in SKIPPED and _is_number(value):
            yield f"{prefix}{key}", float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _steps(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[tuple[float, str]]]:
    """(x of each row, (x, name) of each phase's beginning). x keeps rising where the step count restarts."""
    xs: list[float] = []
    breaks: list[tuple[float, str]] = []
    offset, last, phase = 0.0, 0.0, ""
    for i, row in enumerate(history):
        step = row.get("step", i + 1)
        step = float(step) if isinstance(step, int | float) and math.isfinite(step) else float(i + 1)
        name = next((str(row[key]) for key in PHASES if key in row), "")
        if xs and step + offset < last:
            offset = last
        last = step + offset
        xs.append(last)
        if name and name != phase and name not in [known for _, known in breaks]:
            breaks.append((last, name))
            phase = name
    return xs, breaks


def _align(history: Sequence[Mapping[str, Any]], breaks: Sequence[tuple[float, str]]) -> list[float]:
    """The x of each row, shifted so that each phase begins where ``breaks``, of another run, has it.

    A phase that the other run does not have follows the phase before it.
    """
    xs, phases = _steps(history)
    other_start = {name: x for x, name in breaks}
    shifts = [(start, other_start[name] - start) for start, name in phases if name in other_start]
    return [x + next((shift for start, shift in reversed(shifts) if x >= start), 0.0) for x in xs]
