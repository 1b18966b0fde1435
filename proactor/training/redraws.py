"""Groups without spread, which give no gradient, are drawn again: DAPO's dynamic sampling.

DAPO (arXiv 2503.14476 [NOTES]) draws other prompts until a batch is full of groups with spread. With
``redraw`` other a step does that in rounds, with the dialogues or tasks that follow its batch in the epoch's
order; with same it draws the same ones with other noise [INFERRED]. Which those are is a function of the step
and of what was drawn in it, so a resumed run draws them again. A later step of the epoch may meet them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from proactor.engine import Engine

GroupT = TypeVar("GroupT")
T = TypeVar("T")


@dataclass(slots=True)
class Others(Generic[T]):
    """Whole dialogues, or tasks, that a step may still draw, in the epoch's order."""

    items: Sequence[T]
    size: Callable[[T], int]
    """Groups of one of them."""

    def take(self, wanted: int) -> list[T]:
        """The next ones, as many as have ``wanted`` groups together or as there are."""
        taken, count, rest = list[T](), 0, iter(self.items)
        while count < wanted and (item := next(rest, None)) is not None:
            taken.append(item)
            count += self.size(item)
        self.items = list(rest)
        return taken


def redraw(
    engine: Engine,
    most: int,
    groups: Sequence[GroupT],
    flat: Callable[[GroupT], bool],
    tokens: Callable[[GroupT], int],
    draw: Callable[[int, Sequence[GroupT], int], Sequence[GroupT] | None],
    in_place: bool,
) -> tuple[list[GroupT], dict[str, Any]]:
    """Draw this rank's groups that are ``flat`` again, in at most ``most`` rounds; keep the last draw.

    ``draw(attempt, given_up, wanted)``: what this rank draws for its own groups ``given_up``, of which all
    ranks have ``wanted``; None, on every rank, where nothing is left to draw. ``in_place``: one for each, in
    its place; else they come last.

    Returns this rank's groups, and over all ranks ``groups_redrawn`` (each as often as it was given up) and
    ``tokens_redrawn``, ``tokens`` of groups that were given up.
    """
    kept, counts = list(groups), {"groups_redrawn": 0.0, "tokens_redrawn": 0.0}
    for attempt in range(1, most + 1):
        places = [i for i, group in enumerate(kept) if flat(group)]
        given_up = [kept[i] for i in places]
        ranks = engine.gather((len(given_up), sum(map(tokens, given_up))), "groups without spread")
        wanted = sum(count for count, _ in ranks)
        drawn = draw(attempt, given_up, wanted) if wanted else None
        if drawn is None:
            break
        counts["groups_redrawn"] += wanted
        counts["tokens_redrawn"] += sum(spent for _, spent in ranks)
        if in_place:
            for i, group in zip(places, drawn, strict=True):
                kept[i] = group
        else:
            kept = [*(group for i, group in enumerate(kept) if i not in places), *drawn]
    return kept, counts
