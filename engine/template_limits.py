"""What a template may use up: steps, time, and the length of what it makes or reads.

Each rendering has a budget. Whatever a template does in a loop spends of it, and before a value is turned to
text or compared it is weighed: a list that holds one list many times over, and so on, would be endless as
text. Everything here raises SecurityError, which Jinja passes through.
"""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, Set, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MOST_STEPS = 1_000_000
"""Steps of one rendering: a second or so."""
LONGEST_TIME = 10.0
"""Seconds of computing of one rendering, for steps that take long."""
LONGEST_TEXT = 2**22
"""Characters of a text, and items of lists, that a template makes or reads."""
LONGEST_INTEGER = 2**14
"""Bits of an integer."""
STEP_TEXT, STEP_READ, STEP_ITEMS = 1024, 4096, 32
"""Characters made, characters read, and items of a list that cost one step."""
LOOKED_AT = 64
"""Spendings between two looks at the clock."""

WIDTHS = frozenset({"center", "ljust", "rjust", "zfill", "indent", "batch", "slice", "round", "wordwrap"})
"""Methods and filters with a number of characters, items or digits among their arguments."""
_FORMATS = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")
"""A %-format's width and precision."""
_CONTAINERS = (Sequence, Set, Mapping, ItemsView, ValuesView)


class _Budget:
    def __init__(self) -> None:
        self.steps, self.looks = MOST_STEPS, 0
        self.end = time.thread_time() + LONGEST_TIME

    def spend(self, steps: int) -> None:
        self.steps -= steps
        self.looks += 1
        if self.steps < 0:
            raise SecurityError(f"more than {MOST_STEPS} steps: does it end?")
        if self.looks % LOOKED_AT == 0 and time.thread_time() > self.end:
            raise SecurityError(f"more than {LONGEST_TIME:g} s: does it end?")


_budget: ContextVar[_Budget] = ContextVar("_budget")


@contextmanager
def budget() -> Iterator[None]:
    """A budget for what is rendered in the block."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def spend(steps: int = 1) -> None:
    """Spend steps. Raises SecurityError where none are left, or the time is over."""
    _budget.get().spend(steps)


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each for a step."""
    for item in items:
        spend()
        yield item


def weigh(value: object) -> int:
    """About how many characters ``value`` has as text, at the cost of reading it.

    Raises SecurityError where that is too much; and for a namespace, which no template needs as text.
    """
    if isinstance(value, str | bytes):
        size = len(value)
    elif isinstance(value, int):
        size = 1 + value.bit_length() // 3
    elif isinstance(value, Namespace):
        raise SecurityError("a namespace where a text or a list is wanted")
    elif isinstance(value, _CONTAINERS) and not isinstance(value, range):
        size = _unfolded(value, {})
    else:
        return 1
    if size > LONGEST_TEXT:
        raise SecurityError(f"a text or list of {size}, at most {LONGEST_TEXT} is allowed")
    spend(size // STEP_READ)
    return size


def _unfolded(value: object, known: dict[int, tuple[int, object]]) -> int:
    """Characters and items in ``value``, those of a list again wherever it stands.

    ``known``: by id, the size of a container, and the container, so that no other one gets its id.
    """
    if not isinstance(value, _CONTAINERS) or isinstance(value, str | bytes | range):
        return weigh(value)
    if id(value) not in known:
        spend(1 + len(value) // STEP_ITEMS)
        parts = list(value.items() if isinstance(value, Mapping) else value)
        known[id(value)] = 1 + sum(_unfolded(part, known) for part in parts), (value, parts)
    return known[id(value)][0]


def bounded(value: Any) -> Any:
    """``value``, just made, if it is not too long; its length costs steps."""
    if isinstance(value, str | bytes | list | tuple):
        if len(value) > LONGEST_TEXT:
            raise SecurityError(f"a text or list of {len(value)}, at most {LONGEST_TEXT} is allowed")
        spend(len(value) // (STEP_TEXT if isinstance(value, str | bytes) else STEP_ITEMS))
    elif isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        raise SecurityError(f"an integer of {value.bit_length()} bits, at most {LONGEST_INTEGER} are allowed")
    return value


def metered(value: Any) -> Any:
    """``value``; an iterator's items are weighed as they come."""
    return _weighed(value) if isinstance(value, Iterator) else value


def _weighed(items: Iterator[Any]) -> Iterator[Any]:
    for item in counted(items):
        if not isinstance(item, Namespace):
            weigh(item)
        yield item


def joined(pieces: Iterable[str]) -> str:
    """The pieces of a template, macro or block as one text."""
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > LONGEST_TEXT:
            raise SecurityError(f"a text of more than {LONGEST_TEXT} characters")
        kept.append(piece)
    spend(1 + length // STEP_TEXT)
    return "".join(kept)


def check_made(name: str, values: Sequence[object]) -> None:
    """Refuse a method or filter ``name`` that makes too much of ``values``, the text it belongs to first."""
    if name in WIDTHS and any(isinstance(v, int) and abs(v) > LONGEST_TEXT for v in values):
        raise SecurityError(f"{name} to more than {LONGEST_TEXT}")
    match name, values:
        case "replace", (str() as text, str() as old, str() as new, *_):
            size = text.count(old) * len(new)
        case "join", (str() as between, Sized() as items, *_) | (Sized() as items, str() as between, *_):
            size = len(between) * len(items)
        case "indent", (str() as text, *options):
            size = (text.count("\n") + 1) * _largest(options)
        case "wordwrap", (str() as text, *options):  # copies what is left of a word for each line of it
            size = len(text) * max(_largest(options), len(text) // STEP_TEXT)
        case _:
            return
    if size > LONGEST_TEXT:
        raise SecurityError(f"{name} makes more than {LONGEST_TEXT} characters")


def _largest(options: Sequence[object]) -> int:
    """The largest number, or length of a text, among ``options``."""
    sizes = [len(v) if isinstance(v, str) else abs(v) for v in options if isinstance(v, str | int)]
    return max(sizes, default=0)


def check_percent(text: object, values: object) -> None:
    """Refuse ``text % values`` that makes too much."""
    if not isinstance(text, str):
        return
    size = 0
    numbers = [abs(v) for v in (values if isinstance(values, tuple) else (values,)) if isinstance(v, int)]
    for width in (part for found in _FORMATS.findall(text) for part in found if part):
        size += max(numbers, default=0) if width == "*" else int(width[:20])
    if size > LONGEST_TEXT:
        raise SecurityError(f"% to more than {LONGEST_TEXT}")
    if isinstance(values, Mapping) and text.count("%(") * weigh(values) > LONGEST_TEXT:
        raise SecurityError(f"% makes more than {LONGEST_TEXT} characters")


def check_operation(operator: str, left: object, right: object) -> None:
    """Refuse ``left operator right`` that makes too much."""
    if operator == "%":
        check_percent(left, right)
    if operator not in ("*", "**"):
        return
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        bits = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
        if bits > LONGEST_INTEGER:
            raise SecurityError(f"{operator} makes more than {LONGEST_INTEGER} bits")
    for text, times in ((left, right), (right, left)):
        if isinstance(text, Sized) and isinstance(times, int) and len(text) * times > LONGEST_TEXT:
            raise SecurityError(f"{operator} makes more than {LONGEST_TEXT} characters or items")


def check_format(spec: str) -> None:
    """Spend what a format's width costs, and refuse one that is too wide."""
    for digits in re.findall(r"\d+", spec):
        if len(digits) > 20 or int(digits) > LONGEST_TEXT:
            raise SecurityError(f"format to more than {LONGEST_TEXT}")
        spend(int(digits) // STEP_TEXT)
