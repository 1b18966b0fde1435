"""Which groups share a tree: as many as fit a budget of rows, and never more than a pass can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace

from proactor.engine.prefix import common_prefix
from proactor.engine.tree import Tree
from proactor.engine.types import EngineError, Group, with_parents


def by_tree(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups of one ``tree`` key together, in the order of their first; a group without a key is alone."""
    units: dict[Hashable, list[Group]] = {}
    for i, group in enumerate(groups):
        units.setdefault(("key", group.tree) if group.tree is not None else ("index", i), []).append(group)
    return list(units.values())


def refuse_long(groups: Sequence[Group], most: int | None) -> None:
    """Raise EngineError for a trained sample that makes a tree of more than ``most`` rows by itself."""
    for i, group in enumerate(groups):
        for j, sample in enumerate(group.samples):
            rows = len(group.prompt_ids) + len(sample.token_ids) - 1
            if most is not None and rows > most and any(sample.trained_mask()):
                raise EngineError(
                    f"group {i}, sample {j}: {rows} tokens with its prompt, and the GPU has memory for "
                    f"{most} in a pass: shorten the prompt or max_tokens, set quantization to nf4, or take a "
                    "larger GPU"
                )


def pack(
    groups: Iterable[Group],
    budget: int,
    together: bool = True,
    fits: Callable[[Tree], bool] = lambda tree: True,
    cost: Callable[[Tree], float] = lambda tree: math.inf,
) -> list[Tree]:
    """Trees of at most ``budget`` rows; groups of one ``tree`` key stay together while they fit, and above
    the budget where that costs less than trees of their own (``cost``).

    Trees are filled in the order of the prompts, because neighbours share the longest prefixes. With
    ``together`` off each key gets trees of its own, so that no tree depends on other groups, which
    deterministic mode needs. A single group above the budget makes a tree of its own. One that does not
    fit (``fits``) becomes several, each with the prompt and some samples; a group whose `Group.parent` is in
    another tree then has the parent's tokens as prompt. The sum over trained tokens stays the same.
    """
    pieces = [piece for unit in by_tree(groups) for piece in _fit(unit, budget, fits, cost)]
    if not together:
        return pieces
    pieces.sort(key=lambda t: t.groups[0].prompt_ids)
    trees: list[Tree] = []
    held: list[Group] = []
    size = 0
    previous: list[int] = []
    for piece in pieces:
        prompt = list(piece.groups[0].prompt_ids)
        extra = piece.rows - (common_prefix(previous, prompt) if held else 0)
        if held and size + extra > budget:
            trees.append(Tree(held))
            held, size, extra = [], 0, piece.rows
        held, size, previous = held + piece.groups, size + extra, prompt
    return [*trees, Tree(held)] if held else trees


def _fit(
    unit: list[Group], budget: int, fits: Callable[[Tree], bool], cost: Callable[[Tree], float]
) -> list[Tree]:
    """Halve a unit until its trees fit, unless they cost more than the unit; lone groups and those that hang
    off others only where they must.
    """
    if not unit:
        return []
    tree = Tree(unit)
    whole = len(unit) == 1 or any(g.parent is not None for g in unit)
    if tree.rows <= budget or (whole and fits(tree)):
        return [tree]
    if len(unit) > 1:
        half = len(unit) // 2
        parts = [unit[:half], unit[half:]]
    elif len(unit[0].samples) > 1:
        half = len(unit[0].samples) // 2
        parts = [[replace(unit[0], samples=s)] for s in (unit[0].samples[:half], unit[0].samples[half:])]
    else:
        return [tree]
    pieces = [piece for part in parts for piece in _fit(_apart(part) if whole else part, budget, fits, cost)]
    return [tree] if fits(tree) and cost(tree) <= sum(map(cost, pieces)) < math.inf else pieces


def _apart(groups: list[Group]) -> list[Group]:
    """The groups of a part that train something; a parent sample outside it becomes plain prompt."""
    here = {id(sample) for group in groups for sample in group.samples}
    free = [g if g.parent is None or id(g.parent) in here else replace(g, parent=None) for g in groups]
    return with_parents(free, lambda group: not group.masked)
