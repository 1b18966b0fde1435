"""Small charts: the strip of a metric, and the turns from a window's opening to the first fire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from proactor.report.numbers import number, signed_number
from proactor.report.svg import svg


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
    known = sorted(
        (value, name) for name, value in others.items() if value is not None and math.isfinite(value)
    )
    places = [x(value) for value, _ in known]
    for (value, name), place, at in zip(known, places, side_by_side(places, gap=7, end=x(high)), strict=True):
        parts.append(
            f'<line class="other" x1="{place}" x2="{place}" y1="12" y2="24"/>'
            f'<text class="other" x="{at:.1f}" y="34" text-anchor="middle">{escape(name[:1])}'
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
    return svg("strip", 180, 38, parts, label)


def side_by_side(places: Sequence[float], gap: float, end: float) -> list[float]:
    """``places``, ascending, moved so that ``gap`` lies between neighbours and none is beyond ``end``."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], end)
        end = moved[i] - gap
    return moved


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
            tall = height * count / most
            parts.append(
                f'<rect class="{name}" x="{x + shift:.1f}" y="{base - tall:.1f}" width="16" '
                f'height="{tall:.1f}"/>'
            )
            kind = "" if count else ' class="zero"'
            parts.append(
                f'<text{kind} x="{x + shift + 8:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle">'
                f"{count}</text>"
            )
        beyond = {-reach: "≤", reach: "≥"}.get(k, "")
        text = "opens" if k == 0 else beyond + signed_number(k, 0)
        parts.append(f'<text x="{x + step / 2:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<line class="axis" x1="{left}" x2="{left + (2 * reach + 1) * step}" y1="{base}" y2="{base}"/>'
    )
    return svg("offsets", 627, 172, parts, "first fires by turns from the opening of their window")
