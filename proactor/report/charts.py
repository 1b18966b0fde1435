"""Small charts as inline SVG. Colours come from the page's style: one drawing serves light, dark and print.

Every function returns `Markup` that is safe to place in HTML: names and texts given to it are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from proactor.report.numbers import axis_number, number, signed_number

Point = tuple[float, float]

FEW = 24
"""Curves of at most this many points are drawn as dots, without a running mean."""


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with its interval."""

    estimate: float
    low: float
    high: float


def strip(
    before: Range,
    after: Range,
    others: Mapping[str, float | None],
    low: float,
    high: float,
    names: tuple[str, str] = ("before", "after"),
) -> Markup:
    """Before (hollow) above after (solid), each with its interval; each other system a tick with its initial.

    ``names``: what tooltips call the two.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5

    def x(value: float) -> float:
        return round(6 + 168 * (min(max(value, low), high) - low) / (high - low), 1)

    parts = [f'<line class="axis" x1="{x(low)}" x2="{x(high)}" y1="16" y2="16"/>']
    if low < 0 < high:
        parts.append(f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="2" y2="30"/>')
    last = -100.0
    for name, value in sorted(others.items(), key=lambda item: (item[1] is None, item[1] or 0.0)):
        if value is None or not math.isfinite(value):
            continue
        place = x(value)
        parts.append(f'<line class="other" x1="{place}" x2="{place}" y1="12" y2="24"/>')
        last = max(place, last + 7)  # initials of systems close together stand side by side
        parts.append(
            f'<text class="other" x="{last:.1f}" y="34" text-anchor="middle">{escape(name[:1])}'
            f"<title>{escape(name)} {number(value)}</title></text>"
        )
    for kind, name, y, shown in (("before", names[0], 8, before), ("after", names[1], 20, after)):
        if not math.isfinite(shown.estimate):
            continue
        whisker = ""
        if math.isfinite(shown.low) and math.isfinite(shown.high):
            whisker = f'<line x1="{x(shown.low)}" x2="{x(shown.high)}" y1="{y}" y2="{y}"/>'
        dot = f'<circle cx="{x(shown.estimate)}" cy="{y}" r="3.6"/>'
        title = escape(f"{name} {number(shown.estimate)}, {number(shown.low)} to {number(shown.high)}")
        parts.append(f'<g class="{kind}">{whisker}{dot}<title>{title}</title></g>')
    label = f"{names[0]} and {names[1]} with intervals, beside the trivial policies"
    return _svg("strip", 180, 38, parts, label)


@dataclass(frozen=True, slots=True)
class _Field:
    """The plotting area of a chart and the ranges of data that fill it."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Data to drawing, left to right; the middle where all values are equal."""
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.left + (self.right - self.left) * share, 1)

    def y(self, value: float) -> float:
        """Data to drawing, bottom to top."""
        low, high = self.y_range
        return round(self.bottom - (self.bottom - self.top) * ((value - low) / (high - low)), 1)

    def grid(self) -> list[str]:
        """Horizontal lines at round numbers, labelled at the left."""
        low, high = self.y_range
        parts = []
        for tick in _ticks(low, high):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"/>')
            text = axis_number(tick, high - low)
            parts.append(f'<text x="{self.left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        return parts


def line(
    points: Sequence[Point],
    *,
    band: Sequence[float] | None = None,
    breaks: Sequence[tuple[float, str]] = (),
    beside: Sequence[Point] = (),
    label: str = "",
) -> Markup:
    """A learning curve: faint as measured, bold as a running mean; with few points, dots.

    ``band``: a half-width for each point, drawn behind. ``breaks``: (x, name) of the phases of training.
    ``beside``: the curve of another run, dashed.
    """
    xs = [x for x, _ in (*points, *beside)]
    widths = band if band is not None else [0.0] * len(points)
    edges = [y + side * w for (_, y), w in zip(points, widths) for side in (-1, 1)]
    y_range = _limits(edges + [y for _, y in beside])
    field = _Field(46.0, 312.0, 10.0, 118.0, (min(xs), max(xs)), y_range)
    parts = [*field.grid(), *_phases(field, breaks)]
    if band is not None:
        upper = [f"{field.x(x)},{field.y(y + w)}" for (x, y), w in zip(points, band)]
        lower = [f"{field.x(x)},{field.y(y - w)}" for (x, y), w in zip(points, band)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    if beside:
        parts.append(_polyline(field, "beside", beside if len(beside) <= FEW else _smooth(beside)))
    if len(points) <= FEW:
        parts.append(_polyline(field, "curve", points))
        for x, y in points:
            title = f"{number(x, 0)}: {number(y, 4)}"
            parts.append(
                f'<circle class="dot" cx="{field.x(x)}" cy="{field.y(y)}" r="2.6">'
                f"<title>{title}</title></circle>"
            )
    else:
        parts += [_polyline(field, "raw", points), _polyline(field, "curve", _smooth(points))]
    parts += [
        f'<text x="{field.x(x)}" y="133" text-anchor="{anchor}">{number(x, 0)}</text>'
        for x, anchor in zip(field.x_range, ("start", "end"))
    ]
    return _svg("chart", 320, 140, parts, label)


def _phases(field: _Field, breaks: Sequence[tuple[float, str]]) -> list[str]:
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


def _polyline(field: _Field, kind: str, points: Iterable[Point]) -> str:
    places = " ".join(f"{field.x(x)},{field.y(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def offsets(before: Mapping[int, int], after: Mapping[int, int], reach: int = 6) -> Markup:
    """First fires by the number of turns after their window opened (0): before hollow, after solid.

    Offsets beyond ``reach`` are added to the outermost bars.
    """
    clipped: dict[str, dict[int, int]] = {}
    for name, counts in (("before", before), ("after", after)):
        clipped[name] = dict.fromkeys(range(-reach, reach + 1), 0)
        for offset, count in counts.items():
            clipped[name][min(max(offset, -reach), reach)] += count
    most = max(*clipped["before"].values(), *clipped["after"].values(), 1)
    left, step, base, height = 8.0, 47.0, 150.0, 118.0
    parts = [
        f'<rect class="opens" x="{left + reach * step:.1f}" y="14" width="{step}" height="{base - 14}"/>'
    ]
    for k in range(-reach, reach + 1):
        x = left + (k + reach) * step
        for name, shift in (("before", 6.0), ("after", 24.0)):
            count = clipped[name][k]
            if not count:
                continue
            tall = height * count / most
            parts.append(
                f'<rect class="{name}" x="{x + shift:.1f}" y="{base - tall:.1f}" width="16" '
                f'height="{tall:.1f}"/>'
            )
            parts.append(
                f'<text x="{x + shift + 8:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle">{count}</text>'
            )
        beyond = {-reach: "≤", reach: "≥"}.get(k, "")
        text = "opens" if k == 0 else beyond + signed_number(k, 0)
        parts.append(f'<text x="{x + step / 2:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<line class="axis" x1="{left}" x2="{left + (2 * reach + 1) * step}" y1="{base}" y2="{base}"/>'
    )
    return _svg("offsets", 627, 172, parts, "first fires by turns from the opening of their window")


def trade_off(
    curves: Mapping[str, Sequence[Point]], dots: Mapping[str, Point], budget: float, chosen: Point | None
) -> Markup:
    """Turns saved (up) against wrong fires in 100 dialogues (right).

    The x axis is a square root, so that 0 and the budget are visible. ``curves``: points of a system at many
    thresholds. ``dots``: systems of one point. ``chosen``: gets a ring.
    """
    every = [point for points in curves.values() for point in points] + list(dots.values())
    low, high = _limits([0.0, *(y for _, y in every)])
    most = math.sqrt(max([budget * 4, *(x for x, _ in every)]))
    field = _Field(46.0, 600.0, 12.0, 220.0, (0.0, most), (low, high))

    def place(point: Point) -> tuple[float, float]:
        return field.x(math.sqrt(max(point[0], 0.0))), field.y(point[1])

    limit = place((budget, low))[0]
    parts = [
        f'<rect class="within" x="{field.left}" y="{field.top}" width="{limit - field.left:.1f}" '
        f'height="{field.bottom - field.top:.1f}"/>',
        *field.grid(),
    ]
    for tick in sorted({0.0, budget, *(round((most * k / 4) ** 2) for k in (1, 2, 3, 4))}):
        x = place((tick, low))[0]
        parts.append(f'<text x="{x}" y="{field.bottom + 15}" text-anchor="middle">{number(tick, 0)}</text>')
    for name, points in curves.items():
        places = " ".join(f"{x},{y}" for x, y in map(place, sorted(points)))
        parts.append(f'<polyline class="curve" points="{places}"><title>{escape(name)}</title></polyline>')
    for name, point in dots.items():
        parts += _named_dot(field, *place(point), name)
    if chosen is not None:
        x, y = place(chosen)
        parts.append(f'<circle class="chosen" cx="{x}" cy="{y}" r="6"><title>chosen on dev</title></circle>')
    return _svg("tradeoff", 620, 244, parts, "turns saved against wrong fires in 100 dialogues")


def _named_dot(field: _Field, x: float, y: float, name: str) -> list[str]:
    """A dot with its name on the side that has room."""
    anchor, shift = ("end", -8) if x > (field.left + field.right) / 2 else ("start", 8)
    text = escape(name.replace("_", " "))
    return [
        f'<circle class="other" cx="{x}" cy="{y}" r="4"/>',
        f'<text x="{x + shift:.1f}" y="{y - 5:.1f}" text-anchor="{anchor}">{text}</text>',
    ]


def _svg(kind: str, width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: all values with 6% around; never below 0 for quantities that are not negative."""
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
    return (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers inside [low, high]."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over a window of about a twelfth of the curve, centred, cut at the ends."""
    reach = max(1, len(points) // 24)
    smooth = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        smooth.append((x, sum(window) / len(window)))
    return smooth
