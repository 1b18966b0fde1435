"""Places for the labels of points in a chart, so that no two of them collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTER = 5.9
"""Width of a letter at 11 px, in px: a little more than the mean of common sans-serif faces."""
HEIGHT = 14.0
GAP = 8.0
"""Between a point and its label."""


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
    points: Sequence[tuple[float, float, str]], field: Box, taken: Sequence[Box] = ()
) -> list[Label]:
    """A label for each (x, y, text), inside ``field``, where it covers neither another label nor ``taken``.

    A label goes beside its point, else above or below that place, the nearest first, and on the far side
    last. Points at one place share one label. Where nothing is free, it stays beside its point.
    """
    groups: dict[tuple[float, float], list[str]] = {}
    for x, y, text in points:
        groups.setdefault((round(x), round(y)), []).append(text)
    dots = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in groups]
    placed: list[Label] = []
    for (x, y), texts in sorted(groups.items()):
        text = ", ".join(dict.fromkeys(texts))
        boxes = _candidates(x, y, min(len(text) * LETTER, field.right - field.left), field)
        blocked = [*(label.box for label in placed), *taken]
        free = [b for b in boxes if not any(b.overlaps(other) for other in blocked)]
        clear = [b for b in free if not any(b.overlaps(dot) for dot in dots)]
        box = (clear or free or boxes)[0]
        beside = max(box.left - x, x - box.right) <= 2 * GAP
        moved = not beside or abs((box.top + box.bottom) / 2 - y) > HEIGHT
        placed.append(Label(text, (x, y), box, moved))
    return placed


def _candidates(x: float, y: float, width: float, field: Box) -> list[Box]:
    """Places for a label of a point, the best first: both sides of it, at growing heights above and below."""
    right_first = x + GAP + width <= field.right
    sides = (x + GAP, x - GAP - width) if right_first else (x - GAP - width, x + GAP)
    lefts = [min(max(left, field.left), field.right - width) for left in sides]
    steps = int((field.bottom - field.top) / (HEIGHT / 2)) + 1
    tops = [y - HEIGHT / 2 + sign * k * HEIGHT / 2 for k in range(steps) for sign in ((1, -1) if k else (1,))]
    inside = [top for top in tops if field.top <= top <= field.bottom - HEIGHT]
    near = [Box(left, top, left + width, top + HEIGHT) for top in inside[:5] for left in lefts]
    far = [Box(left, top, left + width, top + HEIGHT) for left in lefts for top in inside[5:]]
    return near + far
