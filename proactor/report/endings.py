"""How episodes end: their shares by training step as stacked columns, and by part of the run as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from proactor.report.labels import Box, draw_label, place_labels
from proactor.report.svg import Field, svg, x_axis
from proactor.training.episode_rows import BeforeAfter

ENDINGS = {
    "terminated": "the environment's end",
    "truncated": "cut by the environment",
    "turns": "turns used up",
    "tokens": "tokens used up",
    "context": "context full",
    "no_call": "reply without a call",
    "error": "environment failed",
    "timeout": "environment too slow",
    "cancelled": "cancelled",
}
"""Kinds of `environments.episode.Ending` in words, in the order in which they are stacked."""


@dataclass(frozen=True, slots=True)
class EndingRow:
    """An ending with its share of the episodes of each part; None where the part has no episodes."""

    kind: str
    words: str
    shares: tuple[float | None, ...]

    @property
    def css(self) -> str:
        """The class that colours it."""
        return _css(self.kind)


def endings_table(rows: Sequence[Mapping[str, Any]], tested: BeforeAfter | None) -> dict[str, Any]:
    """``ending_parts``: names of the parts, thirds of training and the test tasks; ``endings``: the rows."""
    steps = [counted for _, counted in _by_step(rows)]
    third = max(1, len(steps) // 3)
    parts: dict[str, Counter[str]] = {}
    if steps:
        parts |= {"first third of steps": _sum(steps[:third]), "last third": _sum(steps[-third:])}
    if tested is not None:
        parts["test, before"] = Counter(e.ending for e in tested.before)
        parts["test, after"] = Counter(e.ending for e in tested.after)
    seen = _sum(parts.values())
    known = [*ENDINGS, *sorted(seen.keys() - ENDINGS.keys())]
    return {
        "ending_parts": list(parts),
        "endings": [
            EndingRow(kind, ENDINGS.get(kind, kind), tuple(_share(part, kind) for part in parts.values()))
            for kind in known
            if seen[kind]
        ],
    }


def endings_chart(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A column a training step, the shares of its episodes stacked; empty for fewer than two steps."""
    steps = [(step, counted) for step, counted in _by_step(rows) if counted.total()]
    if len(steps) < 2:
        return Markup()
    first, last = steps[0][0], steps[-1][0]
    field = Field(46.0, 470.0, 10.0, 150.0, (first - 0.5, last + 0.5), (0.0, 100.0))
    whole = (field.right - field.left) / (last - first + 1)
    width = max(whole - (2 if whole > 8 else 0), 1.0)
    every = sorted({first, last, *range(first, last + 1, max(1, (last - first) // 6))})
    marked = [t for t in every if t == last or last - t >= (last - first) / 12]
    parts = field.grid() + x_axis(field, [(t, field.x(t)) for t in marked], "training step", "% of episodes")
    named = list[tuple[float, float, str]]()
    for step, counted in steps:
        below, left = 0.0, field.x(step) - width / 2
        for kind in (*ENDINGS, *sorted(counted.keys() - ENDINGS.keys())):
            share = 100 * counted[kind] / counted.total()
            if not share:
                continue
            top, bottom = field.y(below + share), field.y(below)
            parts.append(
                f'<rect class="e-{_css(kind)}" x="{left:.1f}" y="{top}" '
                f'width="{width:.1f}" height="{bottom - top:.1f}"><title>step {step}: '
                f"{escape(ENDINGS.get(kind, kind))} {counted[kind]} of {counted.total()}</title></rect>"
            )
            if step == last:
                named.append((field.right, (top + bottom) / 2, ENDINGS.get(kind, kind)))
            below += share
    for label in place_labels(named, Box(field.right + 6, field.top - 8, 640, field.bottom + 8)):
        parts += draw_label(label)
    return svg("endings", 640, 190, parts, "share of episodes by ending, by training step")


def _css(kind: str) -> str:
    return kind if kind in ENDINGS else "other"


def _by_step(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Counter[str]]]:
    """(step, episodes by ending) of each step that played episodes."""
    return [
        (
            int(row["step"]),
            Counter({k.removeprefix("ending/"): int(v) for k, v in row.items() if k.startswith("ending/")}),
        )
        for row in rows
        if row.get("kind") == "grpo" and isinstance(row.get("step"), int)
    ]


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    total = Counter[str]()
    for one in counts:
        total.update(one)
    return total


def _share(part: Counter[str], kind: str) -> float | None:
    return part[kind] / part.total() if part.total() else None
