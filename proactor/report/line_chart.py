"""A learning curve as SVG: the chosen step marked, the phases of training named, another run dashed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from proactor.report.numbers import number
from proactor.report.svg import Field, Point, limits, polyline, svg, ticks

FEW = 24
"""Curves of at most this many points are drawn as dots, without a running mean."""


@dataclass(frozen=True, slots=True)
class Curve:
    """``band``: a half-width for each point, drawn behind. ``chosen``: the point that gets a ring."""

    points: Sequence[Point]
    band: Sequence[float] | None = None
    chosen: Point | None = None


def line(
    curve: Curve,
    *,
    breaks: Sequence[tuple[float, str]] = (),
    beside: Curve | None = None,
    chosen_at: float | None = None,
    axis: str = "",
    label: str = "",
) -> Markup:
    """A learning curve: faint as measured, bold as a running mean; with few points, dots.

    ``breaks``: (x, name) of the phases of training. ``beside``: the curve of another run, dashed.
    ``chosen_at``: x of the chosen step, a vertical line. ``axis``: the title of the x axis.
    """
    points, other = curve.points, beside.points if beside is not None else ()
    xs = [x for x, _ in (*points, *other)]
    widths = curve.band if curve.band is not None else [0.0] * len(points)
    edges = [y + side * w for (_, y), w in zip(points, widths, strict=True) for side in (-1, 1)]
    y_range = limits(edges + [y for _, y in other])
    field = Field(46.0, 312.0, 10.0, 118.0, (min(xs), max(xs)), y_range)
    parts = [*field.grid(), *_phases(field, breaks)]
    if chosen_at is not None and field.x_range[0] <= chosen_at <= field.x_range[1]:
        x = field.x(chosen_at)
        parts.append(f'<line class="chosen" x1="{x}" x2="{x}" y1="{field.top}" y2="{field.bottom}"/>')
    if curve.band is not None:
        upper = [f"{field.x(x)},{field.y(y + w)}" for (x, y), w in zip(points, curve.band, strict=True)]
        lower = [f"{field.x(x)},{field.y(y - w)}" for (x, y), w in zip(points, curve.band, strict=True)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    if beside is not None:
        parts.append(polyline(field, "beside", other if len(other) <= FEW else _smooth(other)))
        parts += _ring(field, beside.chosen, "beside")
    if len(points) <= FEW:
        parts.append(polyline(field, "curve", points))
        parts += [_dot(field, point) for point in points]
    else:
        parts += [polyline(field, "raw", points), polyline(field, "curve", _smooth(points))]
    parts += [*_ring(field, curve.chosen, "ring"), *_x_axis(field, axis)]
    return svg("chart", 320, 156, parts, f"{label} by {axis}" if axis else label)


def _dot(field: Field, point: Point) -> str:
    x, y = point
    return (
        f'<circle class="dot" cx="{field.x(x)}" cy="{field.y(y)}" r="2.6">'
        f"<title>{number(x, 0)}: {number(y, 4)}</title></circle>"
    )


def _ring(field: Field, point: Point | None, kind: str) -> list[str]:
    """A ring around the chosen point, with its value on the side that has room."""
    if point is None:
        return []
    x, y = field.x(point[0]), field.y(point[1])
    anchor, shift = ("end", -8) if x > (field.left + field.right) / 2 else ("start", 8)
    below = y < field.top + 14
    return [
        f'<circle class="{kind}" cx="{x}" cy="{y}" r="5.5"><title>chosen step</title></circle>',
        f'<text class="{kind}" x="{x + shift:.1f}" y="{y + (14 if below else -6):.1f}" '
        f'text-anchor="{anchor}">{number(point[1])}</text>',
    ]


def _x_axis(field: Field, axis: str) -> list[str]:
    low, high = field.x_range
    whole = [x for x in ticks(low, high) if x == int(x)] if high > low else [low]
    parts = [
        f'<text x="{field.x(x)}" y="{field.bottom + 14}" text-anchor="middle">{number(x, 0)}</text>'
        for x in whole
    ]
    if axis:
        middle = (field.left + field.right) / 2
        parts.append(
            f'<text class="title" x="{middle}" y="{field.bottom + 30}" text-anchor="middle">'
            f"{escape(axis)}</text>"
        )
    return parts


def _phases(field: Field, breaks: Sequence[tuple[float, str]]) -> list[str]:
    """Vertical lines where the phases of training begin, with their names."""
    low, high = field.x_range
    parts = []
    for start, name in breaks:
        if not low < start < high:
            continue
        x = field.x(start)
        anchor, shift = ("end", -4) if x > (field.left + field.right) / 2 else ("start", 4)
        parts.append(f'<line class="break" x1="{x}" x2="{x}" y1="{field.top}" y2="{field.bottom}"/>')
        parts.append(
            f'<text class="break" x="{x + shift:.1f}" y="{field.top + 8}" text-anchor="{anchor}">'
            f"{escape(name)}</text>"
        )
    return parts


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over a window of about a twelfth of the curve, centred, cut at the ends."""
    reach = max(1, len(points) // 24)
    smooth = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        smooth.append((x, sum(window) / len(window)))
    return smooth
