"""Learning curves from the rows of metrics.jsonl: a small chart for every number, by section.

An unknown key is shown under its own name (`curve_names`), so that no counter is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from proactor.report.curve_names import DECISIVE, SECTIONS, describe, order_of
from proactor.report.line_chart import Curve, line
from proactor.report.numbers import number
from proactor.report.rewards import RewardsApart
from proactor.report.svg import Point
from proactor.training.outcome import chosen_row
from proactor.training.record import RunRecord

AXIS = "training step"
COUNTED = re.compile(
    r"unread(_graph)?/.*|judge[/_](?!spread|agreement|pairs|tau).*|(eval_)?ending/.*|host/.*|left_out_.*"
)
"""Counters by event: a step at which the event did not happen has no such key in its row, and counts 0."""
SKIPPED = frozenset({"step", "epoch", "time", "timestamp", "wall_time", "policy_version", "seed"})
PHASES = ("phase", "kind", "stage")
SPREADS = ("_std", "/std", "_spread", "/spread")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Trained:
    """The training of a run: its rows of metrics.jsonl, and what its folder says of it."""

    rows: Rows
    record: RunRecord = field(default_factory=RunRecord)

    @property
    def chosen(self) -> int | None:
        """The index of the row whose check chose the step."""
        return None if self.record.chosen is None else chosen_row(self.rows, self.record.chosen)


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart, with its name, sentence, and values: the first, that of the chosen step ("" where it has
    none), the last, the last of the run beside it. ``run``: whose chart, where each run has its own.
    """

    key: str
    name: str
    help: str
    first: str
    chosen: str
    last: str
    beside: str
    svg: Markup
    run: str = ""


@dataclass(slots=True)
class CurveSection:
    """Charts under one heading; numbers that never changed are listed in words. ``apart``: why the two runs
    have charts of their own, where they do.
    """

    title: str
    panels: list[Panel] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    @property
    def decisive(self) -> bool:
        """Whether the section stands open."""
        return self.title == DECISIVE


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The series of a run by key, ready to draw: x of the chosen step, and the values of its check."""

    series: Mapping[str, list[Point]]
    breaks: Sequence[tuple[float, str]]
    chosen_at: float | None
    at_chosen: Mapping[str, float]

    @classmethod
    def of(cls, trained: Trained, breaks: Sequence[tuple[float, str]] | None = None) -> _Drawn:
        """``breaks``: those of another run, to which the phases of this one are aligned."""
        xs, own = _steps(trained.rows)
        if breaks is not None:
            xs, own = _align(trained.rows, breaks), list(breaks)
        i = trained.chosen
        return cls(
            _series(trained.rows, xs),
            own if len(own) > 1 else [],
            None if i is None else xs[i],
            {} if i is None else dict(_numbers(trained.rows[i])),
        )

    def curve(self, key: str, *, band: bool = True) -> Curve:
        """The curve of ``key``, with the value of the chosen step where its check has one."""
        chosen = None
        if self.chosen_at is not None and key in self.at_chosen:
            chosen = (self.chosen_at, self.at_chosen[key])
        return Curve(self.series[key], _band(key, self.series) if band else None, chosen)


def sections(
    trained: Trained, beside: Trained | None = None, apart: RewardsApart | None = None
) -> list[CurveSection]:
    """Charts of all numbers in the rows, in the order of SECTIONS; empty sections are left out.

    ``beside``: another run, drawn into the charts of the numbers that both runs have; its phases begin where
    those of ``trained`` do. Numbers that are not one measure by ``apart`` get a chart for each run. The
    metric by which the step was chosen stands in the decisive section.
    """
    drawn = _Drawn.of(trained)
    other = None if beside is None else _Drawn.of(beside, _steps(trained.rows)[1])
    by_title = {title: CurveSection(title) for title in SECTIONS}
    for key in sorted(drawn.series, key=order_of):
        if _is_spread(key, drawn.series):
            continue  # drawn as a band around its mean
        section = by_title[_section(key, trained)]
        if other is None or key not in other.series:
            _add(section, key, drawn, None)
        elif apart is not None and (reason := apart.reason(key)):
            assert beside is not None
            _add(section, key, drawn, None, trained.record.name)
            _add(section, key, _Drawn.of(beside), None, beside.record.name)
            section.apart += [reason] if reason not in section.apart else []
        else:
            _add(section, key, drawn, other)
    return [section for section in by_title.values() if section.panels or section.constants]


def _section(key: str, trained: Trained) -> str:
    chosen = trained.record.chosen
    return DECISIVE if chosen is not None and key == f"eval_{chosen.measure}" else describe(key)[0]


def _add(section: CurveSection, key: str, drawn: _Drawn, other: _Drawn | None, run: str = "") -> None:
    """Add the chart of ``key``, or its value where it never changed. ``run``: whose chart it is."""
    points, others = drawn.series[key], other.series[key] if other is not None else []
    _, name, help = describe(key)
    if len({y for _, y in (*points, *others)}) == 1:
        section.constants.append((f"{name} ({run})" if run else name, number(points[0][1])))
        return
    curve = drawn.curve(key)
    svg = line(
        curve,
        breaks=drawn.breaks,
        beside=other.curve(key, band=False) if other is not None else None,
        chosen_at=drawn.chosen_at,
        axis=f"{AXIS}, counted over all phases" if drawn.breaks else AXIS,
        label=name,
    )
    values = number(points[0][1]), number(curve.chosen[1]) if curve.chosen else "", number(points[-1][1])
    beside = number(others[-1][1]) if others else ""
    section.panels.append(Panel(key, name, help, *values, beside, svg, run))


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


def _series(history: Rows, xs: Sequence[float]) -> dict[str, list[Point]]:
    """The points of each key: (x, value) of every row that has it, and 0 where a counter counted nothing."""
    rows = [
        (x, str(row.get("kind", "")), dict(_numbers(row)), row) for x, row in zip(xs, history, strict=True)
    ]
    counted: dict[str, set[str]] = {}
    for _, kind, values, _ in rows:
        for key in filter(COUNTED.fullmatch, values):
            counted.setdefault(key, set()).add(kind)
    series: dict[str, list[Point]] = {}
    for x, kind, values, row in rows:
        zeros = {k: 0.0 for k, kinds in counted.items() if kind in kinds and k not in values and k not in row}
        for key, value in (values | zeros).items():
            # Supervised and policy losses share a name, but not a meaning.
            name = f"{kind}/{key}" if key == "loss" and kind in ("sft", "grpo", "sand") else key
            series.setdefault(name, []).append((x, value))
    if "reward_mean" in series:
        series.pop("parts/reward", None)
    return series


def only_in(history: Rows, other: Rows) -> list[str]:
    """Names of the numbers in ``history`` that are not in ``other``."""
    series = _series(history, _steps(history)[0])
    missing = series.keys() - _series(other, _steps(other)[0]).keys()
    return sorted({describe(key)[1] for key in missing if not _is_spread(key, series)})


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers of a row, nested ones under ``outer/inner``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif key not in SKIPPED and _is_number(value):
            yield f"{prefix}{key}", float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _steps(history: Rows) -> tuple[list[float], list[tuple[float, str]]]:
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


def _align(history: Rows, breaks: Sequence[tuple[float, str]]) -> list[float]:
    """The x of each row, shifted so that each phase begins where ``breaks``, of another run, has it.

    A phase that the other run does not have follows the phase before it.
    """
    xs, phases = _steps(history)
    other_start = {name: x for x, name in breaks}
    shifts = [(start, other_start[name] - start) for start, name in phases if name in other_start]
    return [x + next((shift for start, shift in reversed(shifts) if x >= start), 0.0) for x in xs]
