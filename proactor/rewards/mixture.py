"""Several rewards as one: each part on the scale 0..1, then their weighted sum.

The trainer normalises the sum within the group. That erases any constant and any positive scale of the group,
so rewards must be mixed before it, and on commensurate scales [methods 0.4]. A negative weight is a penalty.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog
from proactor.rewards.components import Component
from proactor.rewards.group import GroupScores
from proactor.rewards.options import RewardError
from proactor.rewards.schedule import Curve, Rest, TrainingProgress

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine


Range = tuple[float, float]
"""The least and the greatest value of a reward."""

UNIT: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Term:
    """A part of a mixture: the number ``key`` of ``component``, from ``range`` to 0..1, times ``weight``."""

    name: str
    component: Component
    key: str
    weight: Curve | Rest
    range: Range = UNIT


class Mixture:
    """A `GroupReward`: ``R = sum_k w_k(progress) x_k``, x_k in 0..1.

    A group is dropped where one of the judges asked drops it. Parts: "reward", x_i by the term's name, and
    the other numbers of a judge as ``<term>/<name>``.

    Raises RewardError without terms, with more than one weight "rest", and for an empty range.
    """

    def __init__(self, name: str, terms: Sequence[Term]) -> None:
        self.name, self.terms = name, tuple(terms)
        if not terms:
            raise RewardError(f"reward {name!r}: no components")
        if sum(isinstance(t.weight, Rest) for t in terms) > 1:
            raise RewardError(f"reward {name!r}: only one weight can be the rest")
        for term in terms:
            if not term.range[0] < term.range[1]:
                raise RewardError(
                    f"reward {name!r}: {term.name}: range {list(term.range)} is empty or reversed"
                )
        self.components: list[Component] = []
        """Each once: equal components of several terms are asked once."""
        self._places: list[int] = []
        """By term: the place of its component in `components`."""
        for term in terms:
            if term.component not in self.components:
                self.components.append(term.component)
            self._places.append(self.components.index(term.component))

    @property
    def concurrent(self) -> bool:
        """True where every judge is; without a judge there is nothing to overlap with sampling."""
        judges = [c for c in self.components if c.costly]
        return bool(judges) and all(c.concurrent for c in judges)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the terms that come from a judge."""
        return tuple(t.name for t in self.terms if t.component.costly)

    @property
    def counters(self) -> Counter[str]:
        """The components' counters, added."""
        return sum((c.counters for c in self.components), Counter[str]())

    @property
    def failure(self) -> str:
        """Why a judge last gave no verdict."""
        return next((reason for c in self.components if (reason := c.failure)), "")

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Bind every component."""
        for component in self.components:
            component.bind(engine, catalog)

    def coefficients(self, progress: TrainingProgress) -> dict[str, float]:
        """The weight of each term at ``progress``."""
        known = {t.name: t.weight.at(progress) for t in self.terms if not isinstance(t.weight, Rest)}
        rest = 1.0 - sum(known.values())
        return {t.name: known.get(t.name, rest) for t in self.terms}

    async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
        """Score one group."""
        return (await self.score_all([candidates], progress))[0]

    async def score_all(self, groups: Sequence[Candidates], progress: TrainingProgress) -> list[GroupScores]:
        """Score every group. A judge is not asked while its weight is 0.

        Raises RewardError for a number outside its range, and for another number of values than candidates.
        """
        weights = self.coefficients(progress)
        weighted = {i for t, i in zip(self.terms, self._places, strict=True) if weights[t.name]}
        asked = [i for i, component in enumerate(self.components) if not component.costly or i in weighted]
        answers = await self._ask([self.components[i] for i in asked], groups)
        return [
            self._mix(len(group), {i: scores[g] for i, scores in zip(asked, answers, strict=True)}, weights)
            for g, group in enumerate(groups)
        ]

    async def _ask(
        self, components: Sequence[Component], groups: Sequence[Candidates]
    ) -> list[list[GroupScores]]:
        """Ask the concurrent judges together, then the other components one after the other."""
        waiting = [c for c in components if c.costly and c.concurrent]
        answers = dict(
            zip(map(id, waiting), await asyncio.gather(*(c.score_all(groups) for c in waiting)), strict=True)
        )
        for component in components:
            if id(component) not in answers:
                answers[id(component)] = await component.score_all(groups)
        return [answers[id(c)] for c in components]

    def _mix(self, n: int, answers: Mapping[int, GroupScores], weights: Mapping[str, float]) -> GroupScores:
        """The mixed scores of one group of ``n``; ``answers``: scores by the component's place."""
        if any(answer is None for answer in answers.values()):
            return None
        mixed: list[dict[str, float]] = [{"reward": 0.0} for _ in range(n)]
        for term, place in zip(self.terms, self._places, strict=True):
            answer = answers.get(place)
            if answer is None:
                continue
            if len(answer) != n:
                raise RewardError(
                    f"reward {self.name!r}: {term.name} gave {len(answer)} values for {n} completions"
                )
            for parts, numbers in zip(mixed, answer, strict=True):
                parts[term.name] = value = to_unit(f"{self.name}: {term.name}", numbers[term.key], term.range)
                parts["reward"] += weights[term.name] * value
                if term.component.costly:
                    parts |= {f"{term.name}/{k}": float(v) for k, v in numbers.items() if k != term.key}
        return mixed


def to_unit(name: str, value: float, bounds: Range) -> float:
    """``value`` of the reward ``name`` on the scale 0..1 of ``bounds``.

    Raises RewardError where it lies outside by more than rounding.
    """
    low, high = bounds
    share = (value - low) / (high - low)
    if not math.isfinite(share) or not -1e-6 <= share <= 1 + 1e-6:
        raise RewardError(
            f"reward {name!r} gave {value!r}, outside its range {low:g} to {high:g}: "
            "declare range: [low, high]"
        )
    return min(1.0, max(0.0, share))
