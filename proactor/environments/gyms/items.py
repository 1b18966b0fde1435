"""A small world of items with attributes and of users with preferences, drawn from a seed: for the gyms that
recommend. All of it is made here and ours; nothing stands for a real shop.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proactor.environments.errors import GymError

KINDS = ("coat", "hat", "bag")
COLOURS = ("red", "blue", "green", "grey")
MATERIALS = ("wool", "silk", "linen", "cotton")
OCCASIONS = ("rain", "work", "sport", "travel")


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the catalogue: its number, and its words: kind, colour, material."""

    number: int
    kind: str
    colour: str
    material: str


def catalogue(copies: int) -> tuple[Item, ...]:
    """``copies`` items of each kind, colour and material."""
    words = [one for one in itertools.product(KINDS, COLOURS, MATERIALS) for _ in range(copies)]
    return tuple(Item(number, *one) for number, one in enumerate(words))


def draw_habits(drawn: random.Random) -> dict[str, str]:
    """A user's preferences: the material that it takes for each occasion."""
    return {occasion: drawn.choice(MATERIALS) for occasion in OCCASIONS}


def popularity(drawn: random.Random, count: int) -> tuple[float, ...]:
    """Weights 1, 1/2, 1/3, … of ``count`` things, in any order: few are taken often, many seldom."""
    weights = [1 / rank for rank in range(1, count + 1)]
    drawn.shuffle(weights)
    return tuple(weights)


def check_counts(gym: str, least: Mapping[str, tuple[int, int]]) -> None:
    """Raise GymError for an option that is no whole number or too small; ``least``: value and least."""
    for key, (value, lowest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise GymError(f"{gym}: {key}={value!r} is no number from {lowest}")


def task_names(gym: str, train: int, test: int, split: str) -> Sequence[str]:
    """Names of the tasks of ``train``, ``test`` or ``all``. Raises GymError for another split."""
    counts = {"train": train, "test": test}
    if split not in (*counts, "all"):
        raise GymError(f"{gym}: no split {split!r}: there are train, test and all")
    return [f"{part}-{i}" for part, n in counts.items() if split in (part, "all") for i in range(n)]


def check_task(gym: str, train: int, test: int, name: str) -> None:
    """Raise GymError for a task that there is not."""
    part, _, number = name.rpartition("-")
    count = {"train": train, "test": test}.get(part, 0)
    if not (number.isdecimal() and number == str(int(number)) and int(number) < count):
        raise GymError(f"{gym}: no task {name!r}")
