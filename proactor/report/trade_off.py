"""Turns saved against wrong fires: the chart of `proactor calibrate`'s results, and the rows below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from proactor.calibration.points import TradeOffPoint
from proactor.calibration.tradeoff import TradeOff, TradeOffs
from proactor.report.labels import Box, Label, place_labels
from proactor.report.numbers import number
from proactor.report.svg import Field, Point, limits, svg

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
        *_x_axis(field, [(t, place((t, low))[0]) for t in x_ticks(most, budget)]),
    ]
    named, drawn = [], list[Box]()
    for i, (name, points) in enumerate(curves.items()):
        places = [place(point) for point in sorted(points)]
        drawn += _boxes(places)
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
        parts += _label(label)
    return svg("tradeoff", 620, 296, parts, f"{Y_TITLE}, by {X_TITLE}")


def _boxes(places: Sequence[Point]) -> list[Box]:
    """Boxes around the segments of a curve; a slanted one is cut into short pieces."""
    boxes = []
    for (x, y), (to_x, to_y) in pairwise(places):
        pieces = 1 if x == to_x or y == to_y else 1 + int(max(abs(to_x - x), abs(to_y - y)) / 8)
        for k in range(pieces):
            xs = [x + (to_x - x) * share / pieces for share in (k, k + 1)]
            ys = [y + (to_y - y) * share / pieces for share in (k, k + 1)]
            boxes.append(Box(min(xs) - 1, min(ys) - 1, max(xs) + 1, max(ys) + 1))
    return boxes


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


def _x_axis(field: Field, ticks: Sequence[tuple[float, float]]) -> list[str]:
    parts = []
    for value, x in ticks:
        text = number(value, 0 if value == int(value) else 1)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{field.top}" y2="{field.bottom}"/>')
        parts.append(f'<text x="{x}" y="{field.bottom + 15}" text-anchor="middle">{text}</text>')
    across, up = (field.left + field.right) / 2, (field.top + field.bottom) / 2
    parts.append(
        f'<text class="title" x="{across}" y="{field.bottom + 34}" text-anchor="middle">{X_TITLE}</text>'
    )
    parts.append(
        f'<text class="title" transform="translate(14 {up}) rotate(-90)" text-anchor="middle">'
        f"{Y_TITLE}</text>"
    )
    return parts


def _label(label: Label) -> list[str]:
    """A name, with a line to its point where it had to move."""
    (x, y), box = label.point, label.box
    middle = (box.top + box.bottom) / 2
    parts = []
    if label.moved:
        edge = box.left if box.left > x else box.right if box.right < x else x
        parts.append(f'<line class="leader" x1="{x}" y1="{y}" x2="{edge:.1f}" y2="{middle:.1f}"/>')
    anchor, at = ("end", box.right) if box.right <= x else ("start", box.left)
    parts.append(
        f'<text class="name" x="{at:.1f}" y="{middle + 4:.1f}" text-anchor="{anchor}">'
        f"{escape(label.text)}</text>"
    )
    return parts
