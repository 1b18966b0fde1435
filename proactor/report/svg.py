"""What every chart is drawn with: the plotting area, round ticks, SVG elements.

Colours come from the page's style: one drawing serves light, dark and print. Every function that returns
`Markup` escapes the names and texts given to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from proactor.report.numbers import axis_number, number

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Field:
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
        for tick in ticks(low, high):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"/>')
            text = axis_number(tick, high - low)
            parts.append(f'<text x="{self.left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        return parts


def polyline(field: Field, kind: str, points: Iterable[Point]) -> str:
    """A curve of class ``kind`` through ``points``."""
    places = " ".join(f"{field.x(x)},{field.y(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def x_axis(field: Field, ticks: Sequence[tuple[float, float]], x_title: str, y_title: str) -> list[str]:
    """Vertical lines at (value, x) of ``ticks``, labelled below, and the titles of both axes."""
    parts = []
    for value, x in ticks:
        text = number(value, 0 if value == int(value) else 1)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{field.top}" y2="{field.bottom}"/>')
        parts.append(f'<text x="{x}" y="{field.bottom + 15}" text-anchor="middle">{text}</text>')
    across, up = (field.left + field.right) / 2, (field.top + field.bottom) / 2
    parts.append(
        f'<text class="title" x="{across}" y="{field.bottom + 34}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    parts.append(
        f'<text class="title" transform="translate(14 {up}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    return parts


def svg(kind: str, width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    """A chart of class ``kind`` made of ``parts``, which are safe; ``label`` describes it to a listener."""
    head = f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    text = head + "".join(parts) + "</svg>"
    return Markup(text)  # nosec B704 # the label is escaped, the parts are safe


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: all values with 6% around; never below 0 for quantities that are not negative."""
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
    return (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad


def ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers inside [low, high]."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
