"""Several rewards as one: every part on the scale 0..1 first, then the weighted sum, then (in the trainer)
the group's normalisation.

Normalisation erases any constant and any positive scale of a whole group, so mixing has to come before it,
and on commensurate scales [methods 0.4]. A negative weight is a penalty.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proactor.dialogue.candidates import Candidates, Stage
from proactor.dialogue.catalog import Catalog
from proactor.rewards.components import UNIT, Range, Source, unit
from proactor.rewards.group import Scored
from proactor.rewards.options import RewardError
from proactor.rewards.schedule import Fixed, Rest

if TYPE_CHECKING:
    from proactor.engine import Engine


@dataclass(frozen=True)
class Term:
    """One part: ``source``'s number ``key`` with its ``range`` brought to 0..1, times ``weight``."""

    name: str
    source: Source
    key: str
    weight: Fixed | Rest
    range: Range = UNIT


class Mixture:
    """A `GroupReward`: `R = sum_k w_k(stage) x_k`, x_k in 0..1.

    A group that one of the judges asked gives up on is dropped whole. Parts: "reward", x_k by the term's
    name, and what else a judge says of a candidate as ``<term>/<name>``.
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
        self.sources: list[Source] = []
        self._of: list[int] = []  # a term's place in sources; equal ones are asked once
        for term in terms:
            if term.source not in self.sources:
                self.sources.append(term.source)
            self._of.append(self.sources.index(term.source))

    @property
    def concurrent(self) -> bool:
        """Only when every judge in it is; without a judge there is nothing to wait for."""
        judges = [s for s in self.sources if s.costly]
        return bool(judges) and all(s.concurrent for s in judges)

    @property
    def judged(self) -> tuple[str, ...]:
        """Terms that come from a judge."""
        return tuple(t.name for t in self.terms if t.source.costly)

    @property
    def counters(self) -> Counter[str]:
        """Those of all judges, added."""
        return sum((s.counters for s in self.sources), Counter[str]())

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Hand the engine and the tools on."""
        for source in self.sources:
            source.bind(engine, catalog)

    def coefficients(self, stage: Stage) -> dict[str, float]:
        """Weight of each term at ``stage``."""
        known = {t.name: t.weight.at(stage) for t in self.terms if not isinstance(t.weight, Rest)}
        rest = 1.0 - sum(known.values())
        return {t.name: known.get(t.name, rest) for t in self.terms}

    async def score(self, candidates: Candidates, stage: Stage) -> Scored:
        """One group."""
        return (await self.score_all([candidates], stage))[0]

    async def score_all(self, groups: Sequence[Candidates], stage: Stage) -> list[Scored]:
        """Every group. A judge is not asked while its weight is 0."""
        weights = self.coefficients(stage)
        wanted = [
            i
            for i, source in enumerate(self.sources)
            if not source.costly or any(weights[t.name] for t, of in zip(self.terms, self._of) if of == i)
        ]
        found = dict(zip(wanted, await self._ask([self.sources[i] for i in wanted], groups), strict=True))
        mixed: list[Scored] = []
        for g, group in enumerate(groups):
            answers = {i: answer[g] for i, answer in found.items()}
            mixed.append(self._mixed(len(group), answers, weights))
        return mixed

    async def _ask(self, sources: Sequence[Source], groups: Sequence[Candidates]) -> list[list[Scored]]:
        """Those that wait for somebody else together, then those that compute, one after the other."""
        waiting = [s for s in sources if s.costly and s.concurrent]
        answers = dict(
            zip(map(id, waiting), await asyncio.gather(*(s.score_all(groups) for s in waiting)), strict=True)
        )
        for source in sources:
            if id(source) not in answers:
                answers[id(source)] = await source.score_all(groups)
        return [answers[id(s)] for s in sources]

    def _mixed(self, n: int, answers: Mapping[int, Scored], weights: Mapping[str, float]) -> Scored:
        if any(answer is None for answer in answers.values()):
            return None
        found: list[dict[str, float]] = [{"reward": 0.0} for _ in range(n)]
        for term, of in zip(self.terms, self._of, strict=True):
            answer = answers.get(of)
            if answer is None:
                continue
            if len(answer) != n:
                raise RewardError(
                    f"reward {self.name!r}: {term.name} gave {len(answer)} values for {n} completions"
                )
            for parts, given in zip(found, answer, strict=True):
                parts[term.name] = value = unit(f"{self.name}: {term.name}", given[term.key], term.range)
                parts["reward"] += weights[term.name] * value
                if term.source.costly:
                    parts |= {f"{term.name}/{k}": float(v) for k, v in given.items() if k != term.key}
        return found
