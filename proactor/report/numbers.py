"""Numbers as a reader sees them in a report."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with a true minus sign and grouped thousands; – when undefined."""
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


def signed_number(value: float | None, digits: int = 3) -> str:
    """``value`` with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and value > 0 else text


def axis_number(value: float, span: float) -> str:
    """A tick's number on an axis that covers ``span``: no more digits than neighbouring ticks need."""
    if value and (abs(value) >= 1e5 or span < 1e-3):
        return f"{value:.0e}".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")
    digits = max(0, min(4, 1 - math.floor(math.log10(span)))) if span < 10 else 0
    return f"{value:.{digits}f}".replace("-", "−")
