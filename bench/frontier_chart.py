"""Draws a record of `bench.frontier`: score against user involvement, an SVG that stands alone.

    python -m bench.frontier_chart bench/results/<machine>/frontier-<name>.json docs/frontier-<name>.svg

Each arm is a point with the places of its seeds around it; the sweep of prices is a line, scripted players
are hollow points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from bench.frontier_arms import SWEEP
from proactor.report.labels import Box, place_labels
from proactor.report.numbers import axis_number
from proactor.report.svg import Field, Point, limits, polyline, svg, ticks

WIDTH, HEIGHT = 700, 400
STYLE = (
    "<style>text{font:11px sans-serif;fill:#222}.title{font-size:12px}.grid{stroke:#ddd}"
    ".arm{fill:#1f5fa8}.seed{fill:#1f5fa8;opacity:.25}.line{fill:#fff;stroke:#777;stroke-width:1.5}"
    ".sweep{fill:none;stroke:#1f5fa8;stroke-width:1.5;stroke-dasharray:5 3}.leader{stroke:#999}</style>"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.frontier_chart", description="Draw a record")
    parser.add_argument("record", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    options.file.write_text(chart(record) + "\n", encoding="utf-8")


def chart(record: Mapping[str, Any]) -> str:
    """The drawing: user-involved actions to the right, score upwards."""
    arms = {name: place(row) for name, row in record["arms"].items()}
    lines = {name: place(row) for name, row in record["lines"].items()}
    most = limits([0.0, *(x for x, _ in [*arms.values(), *lines.values()])])[1]
    field = Field(56, WIDTH - 14, 12, HEIGHT - 44, (-0.02 * most, most), (-0.03, 1.05))
    sweep = [arms[name] for name in SWEEP if name in arms]
    parts = [STYLE, *field.grid(), *axis(field, most), polyline(field, "sweep", sweep)]
    for row in record["arms"].values():
        parts += [dot(field, (p["user_actions"], p["score"]), "seed", 2.5) for p in row["points"].values()]
    parts += [dot(field, point, "line", 4.5) for point in lines.values()]
    parts += [dot(field, point, "arm", 4.5) for point in arms.values()]
    named = [(field.x(x), field.y(y), name) for name, (x, y) in {**lines, **arms}.items()]
    parts += labels(named, Box(field.left + 2, field.top, field.right, field.bottom))
    title = f"score by user-involved actions an episode, {record['gym']}"
    text = str(svg("frontier", WIDTH, HEIGHT, parts, title))
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def place(row: Mapping[str, Any]) -> Point:
    """A system's place: its mean U and score."""
    return row["user_actions"]["estimate"], row["score"]["estimate"]


def dot(field: Field, point: Point, kind: str, radius: float) -> str:
    """A point of class ``kind``."""
    return f'<circle class="{kind}" cx="{field.x(point[0])}" cy="{field.y(point[1])}" r="{radius}"/>'


def axis(field: Field, most: float) -> Iterator[str]:
    """The x axis with its numbers, and both titles."""
    for tick in ticks(0.0, most):
        x = field.x(tick)
        yield f'<text x="{x}" y="{field.bottom + 15}" text-anchor="middle">{axis_number(tick, most)}</text>'
    across, up = (field.left + field.right) / 2, (field.top + field.bottom) / 2
    title = "user-involved actions an episode"
    yield f'<text class="title" x="{across}" y="{field.bottom + 34}" text-anchor="middle">{title}</text>'
    turned = f'transform="translate(14 {up}) rotate(-90)"'
    yield f'<text class="title" {turned} text-anchor="middle">score</text>'


def labels(named: Sequence[tuple[float, float, str]], inside: Box) -> Iterator[str]:
    """The names, with a line to a point that lies away from its name."""
    for label in place_labels(named, inside):
        (x, y), box = label.point, label.box
        middle = (box.top + box.bottom) / 2
        if label.moved:
            edge = box.left if box.left > x else box.right
            yield f'<line class="leader" x1="{x}" y1="{y}" x2="{edge:.1f}" y2="{middle:.1f}"/>'
        anchor, at = ("end", box.right) if box.right <= x else ("start", box.left)
        yield f'<text x="{at:.1f}" y="{middle + 4:.1f}" text-anchor="{anchor}">{escape(label.text)}</text>'


if __name__ == "__main__":
    main()
