"""Turns saved against wrong fires: the chart of `proactor calibrate`'s results, and the rows below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from proactor.calibration.points import TradeOffPoint
from proactor.calibration.tradeoff import TradeOff, TradeOffs
from proactor.report.labels import Box, boxes_along, draw_label, place_labels
from proactor.report.svg import Field, Point, limits, svg, x_axis

X_TITLE = "wrong fires in 100 dialogues (square-root scale)"
Y_TITLE = "turns saved in 100 dialogues"
APART = 30.0
"""Least distance of two numbers on the x axis, in px."""


def table_points(curve: TradeOff) -> list[TradeOffPoint]:
    """The points of a curve in the table: the chosen one, else the only one, else both ends."""
    if curve.chosen is not None:
        return [curve.chosen]
    return list(curve.points[:1] + curve.points[-1:] if len(curve.points) > 1 else curve.points)


def trade_off_chart(trade_offs: TradeOffs) -> Markup:
    """Systems with thresholds as curves, the others as points."""

    def place(p: TradeOffPoint) -> Point:
        return p.wrong_per_100, p.turns_saved

    systems = trade_offs.systems
    lines = {c.system: [place(p) for p in c.points] for c in systems if len(c.points) > 1}
    dots = {c.system: place(c.points[0]) for c in systems if len(c.points) == 1}
    chosen = {c.system: place(c.chosen) for c in systems if c.chosen is not None}
    return draw(lines, dots, trade_offs.budget, chosen)


def draw(
    curves: Mapping[str, Sequence[Point]],
    dots: Mapping[str, Point],
    budget: float,
    chosen: Mapping[str, Point],
) -> Markup:
    """Turns saved (up) against wrong fires (right), on a square-root axis that shows 0 and the budget.

    ``curves``: points of a system at many thresholds. ``dots``: systems of one point. ``chosen``: the point
    of a system that gets a ring.
    """
    every = [point for points in curves.values() for point in points] + list(dots.values())
    low, high = limits([0.0, *(y for _, y in every)])
    low -= 0.04 * (high - low)  # a point at 0 stands clear of both axes
    most = max([budget * 4, 1.0, *(x for x, _ in every)])
    field = Field(64.0, 606.0, 14.0, 252.0, (-0.025 * math.sqrt(most), math.sqrt(most)), (low, high))

    def place(point: Point) -> Point:
        return field.x(math.sqrt(max(point[0], 0.0))), field.y(point[1])

    start, limit = place((0.0, low))[0], place((budget, low))[0]
    parts = [
        f'<rect class="within" x="{start}" y="{field.top}" width="{limit - start:.1f}" '
        f'height="{field.bottom - field.top:.1f}"/>',
        *field.grid(),
        *x_axis(field, [(t, place((t, low))[0]) for t in x_ticks(most, budget)], X_TITLE, Y_TITLE),
    ]
    named, drawn = [], list[Box]()
    for i, (name, points) in enumerate(curves.items()):
        places = [place(point) for point in sorted(points)]
        drawn += boxes_along(places)
        text = " ".join(f"{x},{y}" for x, y in places)
        parts.append(
            f'<polyline class="curve c{i % 2}" points="{text}"><title>{escape(name)}</title></polyline>'
        )
        named.append((*(place(chosen[name]) if name in chosen else places[-1]), name.replace("_", " ")))
    for name, point in dots.items():
        x, y = place(point)
        parts.append(f'<circle class="other" cx="{x}" cy="{y}" r="4"><title>{escape(name)}</title></circle>')
        named.append((x, y, name.replace("_", " ")))
    for name, point in chosen.items():
        x, y = place(point)
        title = f"{name}, chosen on other dialogues"
        parts.append(
            f'<circle class="chosen" cx="{x}" cy="{y}" r="6"><title>{escape(title)}</title></circle>'
        )
    inside = Box(field.left + 2, field.top, field.right, field.bottom)
    for label in place_labels(named, inside, drawn):
        parts += draw_label(label)
    return svg("tradeoff", 620, 296, parts, f"{Y_TITLE}, by {X_TITLE}")


def x_ticks(most: float, budget: float) -> list[float]:
    """0, the budget, and 1, 2, 5 times powers of ten up to ``most``, no two of them too close to read."""
    wide = 542.0
    power = range(-1, math.ceil(math.log10(most)) + 1)
    ticks = [0.0, budget] if budget > 0 else [0.0]
    for tick in sorted((m * 10.0**k for k in power for m in (1, 2, 5)), reverse=True):
        near = min(abs(math.sqrt(tick) - math.sqrt(other)) for other in ticks) * wide / math.sqrt(most)
        if tick <= most and near >= APART:
            ticks.append(tick)
    return sorted(ticks)
