"""The order of turns by a column: of numbers, times, or labels that differ in one number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

_CLOCK = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?(?:\s*([ap])\.?\s?m\.?)?", re.IGNORECASE)
_HALF = re.compile(r"\d\s*[ap]\.?\s?m\b|午\s*\d|오[전후]\s*\d", re.IGNORECASE)
"""Half of a day beside a number, which is then no order of labels: 12 PM comes before 1 PM."""
_DIGITS = re.compile(r"(\d+)")


def places_of(values: Sequence[str]) -> list[int]:
    """The places of values in their order; equal ones stay as they stand.

    Values are all numbers, or times in ISO 8601 (all with an offset from UTC, or none), or clock times of one
    day (9:58, 9:58:30, or all with their half of the day: 9:58 PM), or texts that are the same but for one
    number (turn-9, turn-10). Raises ValueError, one line, where one is empty and where they are none of
    these: no order of texts is to be trusted.
    """
    values = [value.strip() for value in values]
    if "" in values:
        raise ValueError(f"turn {values.index('') + 1} has no value")
    keys = _keys(values) if len(values) > 1 else values
    if keys is None:
        odd = next(i for i in range(1, len(values)) if _keys(values[: i + 1]) is None)
        raise ValueError(
            f"turn {odd + 1} has {values[odd]!r} after {values[odd - 1]!r}: neither numbers nor times "
            "(2026-01-31T09:58:00, 9:58) nor labels that differ in one number"
        )
    return sorted(range(len(keys)), key=keys.__getitem__)


def _keys(values: Sequence[str]) -> Sequence[Any] | None:
    """What the values are compared by; None where they are of no known kind."""
    readers = (_numbers, _times, _clocks, _labels)
    return next((keys for read in readers if (keys := read(values)) is not None), None)


def _numbers(values: Sequence[str]) -> list[Any] | None:
    try:
        keys = [Decimal(value) for value in values]  # exact, where ids are beyond a float
    except InvalidOperation:
        return None
    return keys if all(key.is_finite() for key in keys) else None


def _times(values: Sequence[str]) -> list[Any] | None:
    try:
        keys = [datetime.fromisoformat(value) for value in values]
    except ValueError:
        return None
    return keys if len({key.tzinfo is None for key in keys}) < 2 else None


def _clocks(values: Sequence[str]) -> list[Any] | None:
    found = [match for value in values if (match := _CLOCK.fullmatch(value))]
    halves = {match[4] is not None for match in found}
    if len(found) < len(values) or len(halves) > 1 or (True in halves and any(int(m[1]) > 12 for m in found)):
        return None
    return [(*_hours(m[4], int(m[1])), int(m[2]), Decimal(m[3] or 0)) for m in found]


def _hours(half: str | None, hour: int) -> tuple[bool, int]:
    """(in the afternoon, hours since then) of a clock of 12 hours; an hour of 24 stays as it is."""
    return (False, hour) if half is None else (half in "pP", hour % 12)


def _labels(values: Sequence[str]) -> list[Any] | None:
    if any(map(_HALF.search, values)):
        return None
    parts = [_DIGITS.split(value) for value in values]
    texts = {tuple(part[::2]) for part in parts}
    keys = [[int(number) for number in part[1::2]] for part in parts]
    changing = sum(len(set(column)) > 1 for column in zip(*keys, strict=False))
    return keys if len(texts) < 2 and changing < 2 else None
