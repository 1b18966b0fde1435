"""The symbol of each class of fire, and of the user, as inline SVG; names and texts are escaped."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup

SYMBOLS: dict[str, str] = {
    "on_time": '<circle cx="8" cy="8" r="5.2"/>',
    "early": '<path d="M8 2.4 14 13H2Z"/>',
    "late": '<path d="M8 13.6 2 3h12Z"/>',
    "false": '<path d="M4.4 1.6 8 5.2l3.6-3.6 2.8 2.8L10.8 8l3.6 3.6-2.8 2.8L8 10.8l-3.6 3.6-2.8-2.8'
    'L5.2 8 1.6 4.4Z"/>',
    "repeat": '<path d="M2.2 2.2h8v3.6h3.6v8h-8v-3.6H2.2Z"/>',
    "masked": '<circle cx="8" cy="8" r="5" stroke-dasharray="1.6 2"/>',
    "pending": '<circle cx="8" cy="8" r="2.3"/>',
    "user": '<circle cx="8" cy="5" r="3"/><path d="M2.6 14c0-3.6 2.2-5 5.4-5s5.4 1.4 5.4 5Z"/>',
    "missed": '<path d="M2.5 7h11v2h-11Z"/>',
}
"""Shapes on a 16 x 16 field. The page's style draws them hollow for before, solid for after."""


@lru_cache(4096)  # a page repeats few of them thousands of times
def mark(kind: str, system: str, words: str = "", count: int = 1, name: str = "") -> Markup:
    """The symbol of a class of fire. ``system`` selects hollow or solid; ``name`` is its name for readers."""
    # kind and system are fixed words, but a name can come from a file.
    name = name or system
    times = Markup("<small>×{}</small>").format(count) if count > 1 else ""
    title = f"{name}: {words}" if words else name
    spoken = f"{name} {kind.replace('_', ' ')}"
    return Markup(
        '<span class="mark {} {}" title="{}"><svg viewBox="0 0 16 16" aria-hidden="true">'
        '<use href="#m-{}"/></svg><span class="sr">{}</span>{}</span>'
    ).format(kind, system, title, kind, spoken, times)


def symbols() -> Markup:
    """The shapes that `mark` refers to; needed once per page."""
    shapes = "".join(
        f'<symbol id="m-{kind}" viewBox="0 0 16 16">{shape}</symbol>' for kind, shape in SYMBOLS.items()
    )
    style = 'width="0" height="0" style="position:absolute" aria-hidden="true"'
    return Markup(f"<svg {style}>{shapes}</svg>")  # nosec B704 # constants of this file
