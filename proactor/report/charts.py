"""Small charts as inline SVG: they take their colours from the page, so that light, dark and print need one
drawing.

Every function returns `Markup` that is safe to place in HTML; names and texts given to it are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]

FEW = 24
"""Curves of at most this many points are drawn as dots, without a running mean."""

SYMBOLS: dict[str, str] = {
    "on_time": '<circle cx="8" cy="8" r="5.2"/>',
    "early": '<path d="M8 2.4 14 13H2Z"/>',
    "late": '<path d="M8 13.6 2 3h12Z"/>',
    "false": '<path d="M4.4 1.6 8 5.2l3.6-3.6 2.8 2.8L10.8 8l3.6 3.6-2.8 2.8L8 10.8l-3.6 3.6-2.8-2.8L5.2 8 1.6 4.4Z"/>',
    "repeat": '<path d="M2.2 2.2h8v3.6h3.6v8h-8v-3.6H2.2Z"/>',
    "masked": '<circle cx="8" cy="8" r="5" stroke-dasharray="1.6 2"/>',
    "pending": '<circle cx="8" cy="8" r="2.3"/>',
    "missed": '<path d="M2.5 7h11v2h-11Z"/>',
}
"""The shape of each class of fire, on a 16 x 16 field. Hollow is before, solid is after: the page's style
does that.
"""


def number(value: float | None, digits: int = 3) -> str:
    """`value` for a reader: a true minus sign, thousands in groups, – when undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 10_000:
        text = f"{value:,.0f}".replace(",", " ")
    elif abs(value) >= 100 or (value == int(value) and abs(value) >= 10):
        text = f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    elif value and abs(value) < 10**-digits:
        text = f"{value:.1e}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """`value` with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


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
    """Before (hollow) above after (solid), each with its interval, and a tick with its first letter for each
    other system.

    `names`: what the two are called in the tooltips.
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
        last = max(place, last + 7)  # letters of systems that lie together stand side by side
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
    return _svg(
        "strip", 180, 38, parts, f"{names[0]} and {names[1]} with intervals, beside the trivial policies"
    )


def line(
    points: Sequence[Point],
    *,
    band: Sequence[float] | None = None,
    breaks: Sequence[tuple[float, str]] = (),
    beside: Sequence[Point] = (),
    label: str = "",
) -> Markup:
    """A learning curve: faint as measured, bold as a running mean; with few points, dots.

    `band`: a half-width for each point, drawn behind. `breaks`: (x, name) of the phases of training.
    `beside`: the curve of another run, dashed.
    """
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    widths = list(band) if band is not None else [0.0] * len(points)
    low, high = _limits(
        [y + side * w for y, w in zip(ys, widths) for side in (-1, 1)] + [y for _, y in beside]
    )
    left, right, top, bottom = 46.0, 312.0, 10.0, 118.0
    x_low, x_high = min(every := [*xs, *(x for x, _ in beside)]), max(every)

    def across(x: float) -> float:
        return round(left + (right - left) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5), 1)

    def down(y: float) -> float:
        return round(bottom - (bottom - top) * (y - low) / (high - low), 1)

    def path(kind: str, drawn: Iterable[Point]) -> str:
        return f'<polyline class="{kind}" points="{" ".join(f"{across(x)},{down(y)}" for x, y in drawn)}"/>'

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{down(tick)}" y2="{down(tick)}"/>')
        parts.append(
            f'<text x="{left - 5}" y="{down(tick) + 3.5:.1f}" text-anchor="end">{_tick(tick, high - low)}</text>'
        )
    for at, name in breaks:
        if not x_low < at < x_high:
            continue
        anchor, shift = ("end", -4) if across(at) > (left + right) / 2 else ("start", 4)
        parts.append(f'<line class="break" x1="{across(at)}" x2="{across(at)}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="break" x="{across(at) + shift:.1f}" y="{top + 8}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    if band is not None:
        upper = [f"{across(x)},{down(y + w)}" for x, y, w in zip(xs, ys, widths)]
        lower = [f"{across(x)},{down(y - w)}" for x, y, w in zip(xs, ys, widths)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    if beside:
        others = [y for _, y in beside]
        smooth = others if len(others) <= FEW else _smooth(others)
        parts.append(path("beside", zip([x for x, _ in beside], smooth)))
    if len(points) <= FEW:
        parts.append(path("curve", points))
        for x, y in points:
            title = f"{number(x, 0)}: {number(y, 4)}"
            parts.append(
                f'<circle class="dot" cx="{across(x)}" cy="{down(y)}" r="2.6"><title>{title}</title></circle>'
            )
    else:
        parts += [path("raw", points), path("curve", zip(xs, _smooth(ys)))]
    parts += [
        f'<text x="{across(x)}" y="133" text-anchor="{anchor}">{number(x, 0)}</text>'
        for x, anchor in ((x_low, "start"), (x_high, "end"))
    ]
    return _svg("chart", 320, 140, parts, label)


def offsets(before: Mapping[int, int], after: Mapping[int, int], reach: int = 6) -> Markup:
    """How many first fires came how many turns after their window opened (0), before hollow and after solid;
    ends are summed.
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
            tall = height * count / most
            if count:
                parts.append(
                    f'<rect class="{name}" x="{x + shift:.1f}" y="{base - tall:.1f}" width="16" height="{tall:.1f}"/>'
                )
                parts.append(
                    f'<text x="{x + shift + 8:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle">{count}</text>'
                )
        sign = "≤" if k == -reach else "≥" if k == reach else ""
        text = "opens" if k == 0 else sign + signed(k, 0)
        parts.append(f'<text x="{x + step / 2:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<line class="axis" x1="{left}" x2="{left + (2 * reach + 1) * step}" y1="{base}" y2="{base}"/>'
    )
    return _svg("offsets", 627, 172, parts, "first fires by turns from the opening of their window")


def trade_off(
    curves: Mapping[str, Sequence[Point]], dots: Mapping[str, Point], budget: float, chosen: Point | None
) -> Markup:
    """What is gained (up) against wrong fires in 100 dialogues (right, on a square-root scale so that 0 and
    the budget are seen).

    `curves`: points of a system at many thresholds; `dots`: systems that have one point; `chosen`: ringed.
    """
    every = [point for points in curves.values() for point in points] + list(dots.values())
    low, high = _limits([0.0, *(y for _, y in every)])
    left, right, top, bottom = 46.0, 600.0, 12.0, 220.0
    most = math.sqrt(max([budget * 4, *(x for x, _ in every)]))

    def at(point: Point) -> tuple[float, float]:
        across, down = math.sqrt(max(point[0], 0.0)) / most, (point[1] - low) / (high - low)
        return round(left + (right - left) * across, 1), round(bottom - (bottom - top) * down, 1)

    limit = at((budget, low))[0]
    parts = [
        f'<rect class="within" x="{left}" y="{top}" width="{limit - left:.1f}" height="{bottom - top:.1f}"/>'
    ]
    for tick in _ticks(low, high):
        y = at((0.0, tick))[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick, high - low)}</text>'
        )
    for tick in sorted({0.0, budget, *(round((most * k / 4) ** 2) for k in (1, 2, 3, 4))}):
        parts.append(
            f'<text x="{at((tick, low))[0]}" y="{bottom + 15}" text-anchor="middle">{number(tick, 0)}</text>'
        )
    for name, points in curves.items():
        places = " ".join(f"{x},{y}" for x, y in map(at, sorted(points)))
        parts.append(f'<polyline class="curve" points="{places}"><title>{escape(name)}</title></polyline>')
    for name, point in dots.items():
        x, y = at(point)
        side, shift = ("end", -8) if x > (left + right) / 2 else ("start", 8)
        parts.append(f'<circle class="other" cx="{x}" cy="{y}" r="4"/>')
        parts.append(
            f'<text x="{x + shift:.1f}" y="{y - 5:.1f}" text-anchor="{side}">{escape(name.replace("_", " "))}</text>'
        )
    if chosen is not None:
        x, y = at(chosen)
        parts.append(f'<circle class="chosen" cx="{x}" cy="{y}" r="6"><title>chosen on dev</title></circle>')
    return _svg("tradeoff", 620, 244, parts, "turns saved against wrong fires in 100 dialogues")


def mark(kind: str, system: str, said: str = "", count: int = 1, name: str = "") -> Markup:
    """The symbol of a class of fire; `system` picks hollow or solid in the page's style and is called
    `name`.
    """
    # kind and system are our own words, but a name can come from a file.
    name = name or system
    times = Markup("<small>×{}</small>").format(count) if count > 1 else ""
    return Markup(
        '<span class="mark {} {}" title="{}"><svg viewBox="0 0 16 16" aria-hidden="true"><use href="#m-{}"/></svg>'
        '<span class="sr">{}</span>{}</span>'
    ).format(
        kind, system, f"{name}: {said}" if said else name, kind, f"{name} {kind.replace('_', ' ')}", times
    )


def symbols() -> Markup:
    """The shapes that `mark` refers to, once a page."""
    shapes = "".join(
        f'<symbol id="m-{k}" viewBox="0 0 16 16">{shape}</symbol>' for k, shape in SYMBOLS.items()
    )
    return Markup(f'<svg width="0" height="0" style="position:absolute" aria-hidden="true">{shapes}</svg>')


def _svg(kind: str, width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
    # A quantity that is never negative should not seem to be.
    return (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers inside [low, high]."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float, span: float) -> str:
    if value and (abs(value) >= 1e5 or span < 1e-3):
        return f"{value:.0e}".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")
    digits = max(0, min(4, 1 - math.floor(math.log10(span)))) if span < 10 else 0
    return f"{value:.{digits}f}".replace("-", "−")


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a twelfth of the curve, centred, cut at the ends."""
    reach = max(1, len(values) // 24)
    return [
        sum(part) / len(part)
        for i in range(len(values))
        if (part := values[max(0, i - reach) : i + reach + 1])
    ]
