"""Labels of points in a chart: places where no two of them collide, and their drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import escape

LETTER = 5.9
"""Width of a letter at 11 px, in px: a little more than the mean of common sans-serif faces."""
HEIGHT = 14.0
GAP = 8.0
"""Between a point and its label."""
COVERS_LABEL, COVERS_POINT, COVERS_LINE = 10_000.0, 60.0, 40.0
"""What a place costs that covers another label, a point or a line; a px away from the point costs 1."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in a drawing, in px; y grows downward."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


@dataclass(frozen=True, slots=True)
class Label:
    """``box``: where the text goes, its left edge first. ``moved``: too far from its point to go without a
    line to it.
    """

    text: str
    point: tuple[float, float]
    box: Box
    moved: bool


def place_labels(
    points: Sequence[tuple[float, float, str]], field: Box, avoid: Sequence[Box] = ()
) -> list[Label]:
    """A label for each (x, y, text), inside ``field``: near its point, and where it covers no other label.

    It moves some way to cover no point, and a little to cover nothing of ``avoid``. Points at one place share
    one label.
    """
    groups: dict[tuple[float, float], list[str]] = {}
    for x, y, text in points:
        groups.setdefault((round(x), round(y)), []).append(text)
    dots = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in groups]
    placed: list[Label] = []
    for (x, y), texts in sorted(groups.items()):
        text = ", ".join(dict.fromkeys(texts))

        def cost(box: Box, x: float = x, y: float = y) -> float:
            distance = abs((box.top + box.bottom) / 2 - y) + max(box.left - x, x - box.right, 0.0)
            return (
                distance
                + COVERS_LABEL * sum(box.overlaps(label.box) for label in placed)
                + COVERS_POINT * any(box.overlaps(dot) for dot in dots)
                + COVERS_LINE * any(box.overlaps(line) for line in avoid)
            )

        box = min(_candidates(x, y, min(len(text) * LETTER, field.right - field.left), field), key=cost)
        beside = max(box.left - x, x - box.right) <= 2 * GAP
        moved = not beside or abs((box.top + box.bottom) / 2 - y) > 2 * HEIGHT
        placed.append(Label(text, (x, y), box, moved))
    return placed


def _candidates(x: float, y: float, width: float, field: Box) -> list[Box]:
    """Places for a label of a point: at both of its sides, at all heights."""
    lefts = [min(max(left, field.left), field.right - width) for left in (x + GAP, x - GAP - width)]
    steps = int((field.bottom - field.top) / (HEIGHT / 2)) + 1
    tops = [y - HEIGHT / 2 + k * HEIGHT / 2 for k in range(-steps, steps + 1)]
    inside = [top for top in tops if field.top <= top <= field.bottom - HEIGHT]
    return [Box(left, top, left + width, top + HEIGHT) for top in inside for left in lefts]


def boxes_along(places: Sequence[tuple[float, float]]) -> list[Box]:
    """Boxes around the segments of a curve; a slanted one is cut into short pieces."""
    boxes = []
    for (x, y), (to_x, to_y) in pairwise(places):
        pieces = 1 if x == to_x or y == to_y else 1 + int(max(abs(to_x - x), abs(to_y - y)) / 8)
        for k in range(pieces):
            xs = [x + (to_x - x) * share / pieces for share in (k, k + 1)]
            ys = [y + (to_y - y) * share / pieces for share in (k, k + 1)]
            boxes.append(Box(min(xs) - 1, min(ys) - 1, max(xs) + 1, max(ys) + 1))
    return boxes


def draw_label(label: Label) -> list[str]:
    """A label as SVG, with a line to its point where it had to move."""
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
