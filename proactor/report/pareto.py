"""Success against how often the user is bothered: evaluations as points (U, score), and their front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup, escape

from proactor.report.episode_metrics import EpisodeSummary, Side
from proactor.report.labels import Box, boxes_along, draw_label, place_labels
from proactor.report.numbers import number
from proactor.report.svg import Field, Point, limits, polyline, svg, ticks, x_axis

X_TITLE = "U: actions of an episode that involved the user"
Y_TITLE = "score"


@dataclass(frozen=True, slots=True)
class Mark:
    """A point (U, score) with its name, "" for one without. ``spread``: the intervals (low, high) of both.

    ``kind``: what it is drawn as; ``step`` is one of a path.
    """

    point: Point
    name: str
    kind: Literal["before", "after", "step", "chosen"]
    spread: tuple[Point, Point] | None = None


def front(points: Iterable[Point]) -> list[Point]:
    """The points (U, score) that no other dominates (fewer U, or more score, and neither worse), by U."""
    kept: list[Point] = []
    for u, score in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not kept or score > kept[-1][1]:
            kept.append((u, score))
    return kept


def path_of(rows: Sequence[Mapping[str, Any]], chosen: int | None) -> list[Mark]:
    """The checks on dev of a run, by step; first, last and chosen one (an index in ``rows``) are named."""
    checks = [
        (i, (float(row["eval_user_actions"]), float(row["eval_score"])), int(row.get("step", i)))
        for i, row in enumerate(rows)
        if all(isinstance(row.get(key), int | float) for key in ("eval_user_actions", "eval_score"))
    ]
    named = {checks[0][0], checks[-1][0], chosen} if checks else set()
    return [
        Mark(point, f"step {step}" if i in named else "", "chosen" if i == chosen else "step")
        for i, point, step in checks
    ]


def marks_of(name: str, summary: EpisodeSummary, side: Side) -> list[Mark]:
    """The point of start (``before``) or best of a run on test; none where score or U are undefined."""
    u, score = (summary.intervals[side][key].interval for key in ("user_actions", "score"))
    if not (math.isfinite(u.estimate) and math.isfinite(score.estimate)):
        return []
    bounds = (u.low, u.high), (score.low, score.high)
    known = all(math.isfinite(bound) for pair in bounds for bound in pair)
    return [Mark((u.estimate, score.estimate), name, side, bounds if known else None)]


def pareto_chart(marks: Sequence[Mark], path: Sequence[Mark] = ()) -> Markup:
    """Points with whiskers, a path of points, and the front of each; empty without any.

    Few turns of the user are at the left, a high score at the top: what lies below and right of a front is
    dominated by it.
    """
    every = [*marks, *path]
    if not every:
        return Markup()
    us = [u for m in every for u in (m.point[0], *(m.spread[0] if m.spread else ()))]
    scores = [s for m in every for s in (m.point[1], *(m.spread[1] if m.spread else ()))]
    field = Field(64.0, 606.0, 14.0, 252.0, _clear(us), _clear(scores))
    parts = field.grid()
    parts += x_axis(field, [(t, field.x(t)) for t in ticks(*field.x_range)], X_TITLE, Y_TITLE)
    drawn: list[Box] = []
    for points, kind in ((path, "dev"), (marks, "test")):
        if len(points) > 1:
            stairs = _stairs(field, front(m.point for m in points))
            drawn += boxes_along([(field.x(x), field.y(y)) for x, y in stairs])
            parts.append(polyline(field, f"front {kind}", stairs))
    if len(path) > 1:
        parts.append(polyline(field, "path", [m.point for m in path]))
        drawn += boxes_along([(field.x(m.point[0]), field.y(m.point[1])) for m in path])
    for mark in every:
        whiskers = _whiskers(field, mark)
        drawn += [box for ends in whiskers for box in boxes_along(ends)]
        parts += _drawn(field, mark, whiskers)
    named = [(field.x(m.point[0]), field.y(m.point[1]), m.name) for m in every if m.name]
    inside = Box(field.left + 2, field.top, field.right, field.bottom)
    for label in place_labels(named, inside, drawn):
        parts += draw_label(label)
    return svg("tradeoff pareto", 620, 296, parts, f"{Y_TITLE}, by {X_TITLE}")


def _clear(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis, with room below, so that a point at 0 stands clear of both axes."""
    low, high = limits(values)
    return low - 0.04 * (high - low), high


def _stairs(field: Field, points: Sequence[Point]) -> list[Point]:
    """The corners of a front: level to the next point, then up; from the bottom, to the right edge."""
    corners = [(points[0][0], field.y_range[0])]
    for u, score in points:
        corners += [(u, corners[-1][1]), (u, score)]
    return [*corners, (field.x_range[1], points[-1][1])]


def _whiskers(field: Field, mark: Mark) -> list[tuple[Point, Point]]:
    """The ends of the interval of U, then of the score; none without ``spread``."""
    if mark.spread is None:
        return []
    x, y = field.x(mark.point[0]), field.y(mark.point[1])
    (left, right), (low, high) = mark.spread
    return [((field.x(left), y), (field.x(right), y)), ((x, field.y(low)), (x, field.y(high)))]


def _drawn(field: Field, mark: Mark, whiskers: Sequence[tuple[Point, Point]]) -> list[str]:
    parts = [
        f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>' for (x1, y1), (x2, y2) in whiskers
    ]
    radius = {"step": 2.6, "chosen": 6}.get(mark.kind, 4.6)
    x, y = field.x(mark.point[0]), field.y(mark.point[1])
    told = f"{mark.name + ': ' if mark.name else ''}U {number(mark.point[0])}, score {number(mark.point[1])}"
    parts.append(
        f'<circle class="{mark.kind}" cx="{x}" cy="{y}" r="{radius}"><title>{escape(told)}</title></circle>'
    )
    return parts
